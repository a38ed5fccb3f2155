"""Stage 3: the old rows are backfilld's."""

from django.db import migrations

from backfilld_django import SubmitBackfill
from shop.stages import FINISH, JOB


class Migration(migrations.Migration):
    dependencies = [("shop", "0002_customer_email_normalized")]
    operations = [
        SubmitBackfill(
            name=JOB,
            table="public.shop_customer",
            update={
                "set": {"email_normalized": "lower(email)"},
                "where": "email_normalized IS NULL",
            },
            limits={"rows_per_second": 200},
            finish=FINISH,
        ),
    ]
