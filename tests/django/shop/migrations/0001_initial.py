"""Where it begins: every row has an e-mail address as it was typed in."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("email", models.TextField()),
                ("visits", models.IntegerField(default=0)),
            ],
        ),
    ]
