"""Stage 5: the old column goes."""

from django.db import migrations

from backfilld_django import RequireBackfill
from shop.stages import JOB


class Migration(migrations.Migration):
    dependencies = [("shop", "0004_enforce")]
    operations = [
        RequireBackfill(JOB),
        migrations.RemoveField("customer", "email"),
    ]
