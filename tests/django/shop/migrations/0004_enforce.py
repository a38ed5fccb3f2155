"""Stage 4: the new column is complete, and the old one no longer needed."""

from django.db import migrations, models

from backfilld_django import RequireBackfill
from shop.stages import JOB


class Migration(migrations.Migration):
    dependencies = [("shop", "0003_submit_backfill")]
    operations = [
        # Before it is required, so that a run that comes too early has something to undo.
        migrations.AlterField("customer", "email", models.TextField(null=True)),
        RequireBackfill(JOB),
        migrations.AlterField("customer", "email_normalized", models.TextField()),
    ]
