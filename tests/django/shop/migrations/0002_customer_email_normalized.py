"""Stage 1: a new column, which may be NULL. Stage 2 is to deploy the code that writes it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [
        migrations.AddField("customer", "email_normalized", models.TextField(null=True)),
    ]
