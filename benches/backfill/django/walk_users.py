"""Fills users.email_normalized as a Django project's own command would, without backfilld.

usage: walk_users.py URL bulk|range ROWS_PER_BATCH LAST_ID

bulk   iterator() and bulk_update(): the rows travel to Python and back
range  filter(pk__gt, pk__lte).update(Lower()): one statement a key range, the rows stay

Prints one line of JSON when it is done: when the walk began and ended, in seconds since 1970, and the
CPU seconds of this process between the two. To start Python and to connect do not count.
"""

import json
import sys
import time

import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict


def configure(url):
    """Sets Django up with the one database, everything else at its default."""
    parameters = conninfo_to_dict(url)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": parameters["host"],
                "PORT": parameters["port"],
                "USER": parameters["user"],
                "NAME": parameters["dbname"],
            }
        }
    )
    django.setup()


def user_model():
    """The table users, of which Django needs to know what the walk touches."""
    from django.db import models

    class User(models.Model):
        id = models.BigIntegerField(primary_key=True)
        email = models.TextField()
        email_normalized = models.TextField(null=True)

        class Meta:
            app_label = "bench"
            db_table = "users"
            managed = False

    return User


def walk_bulk(user, rows_per_batch, last_id):
    todo = user.objects.filter(email_normalized__isnull=True, pk__lte=last_id).only("email")
    # iterator's own default chunk_size, whatever the size of a batch.
    rows = todo.order_by("pk").iterator(chunk_size=2000)
    batch = []

    def write():
        user.objects.bulk_update(batch, ["email_normalized"], batch_size=rows_per_batch)
        batch.clear()

    for row in rows:
        row.email_normalized = row.email.lower()
        batch.append(row)
        if len(batch) == rows_per_batch:
            write()
    write()


def walk_range(user, rows_per_batch, last_id):
    from django.db.models.functions import Lower

    for done in range(0, last_id, rows_per_batch):
        upto = min(done + rows_per_batch, last_id)
        user.objects.filter(pk__gt=done, pk__lte=upto).update(email_normalized=Lower("email"))


def main():
    url, way, rows_per_batch, last_id = sys.argv[1:]
    walk = {"bulk": walk_bulk, "range": walk_range}[way]
    configure(url)
    user = user_model()
    from django.db import connection

    connection.ensure_connection()
    began, cpu_before = time.time(), time.process_time()
    walk(user, int(rows_per_batch), int(last_id))
    ended, cpu_after = time.time(), time.process_time()
    print(json.dumps({"began": began, "ended": ended, "cpu_seconds": cpu_after - cpu_before}))


if __name__ == "__main__":
    main()
