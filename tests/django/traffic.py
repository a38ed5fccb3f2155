"""Versions of an application at work on one table, each with the models of its stage of the migrations."""

import random
import threading
import traceback
from typing import Any

from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models import F

# Between two requests of a thread; enough to leave the processors to others.
PAUSE_SECONDS = 0.01
THREADS = 2
# A request that waits so long for a lock fails. How long requests take is for a benchmark to tell: `make bench-locks`.
LOCK_TIMEOUT = "10s"


class Version:
    """One version of the code: a few threads that write and read until it is stopped."""

    def __init__(self, stage: str, writes: tuple[str, ...], seeded: int, number: int) -> None:
        """The columns that it ``writes``; it changes those of the ``seeded`` rows that fall to its ``number``."""
        apps = MigrationLoader(None).project_state(("shop", stage)).apps
        self.customers = apps.get_model("shop", "Customer").objects
        self.stage, self.writes, self.seeded, self.number = stage, writes, seeded, number
        # What the new column must be, by the row's key.
        self.expected: dict[int, str] = {}
        self.failures: list[str] = []
        self.requests = 0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(place,)) for place in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def work(self, place: int) -> None:
        chance = random.Random(place)
        count = 0
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        while not self.stopped.is_set():
            count += 1
            try:
                self.request(chance, f"New{self.number}-{place}-{count}@Example.COM", place)
            except Exception:
                self.failures.append(f"{self.stage}: {traceback.format_exc()}")
            self.requests += 1
            self.stopped.wait(PAUSE_SECONDS)
        connection.close()

    def request(self, chance: random.Random, email: str, place: int) -> None:
        values = self.values(email)
        # No other thread changes this one's e-mail address.
        mine = chance.randrange(1, self.seeded // 10) * 10 + self.number * THREADS + place
        with transaction.atomic():
            made = self.customers.create(**values)
            self.customers.filter(pk=chance.randint(1, self.seeded)).update(visits=F("visits") + 1)
            # The code that knows no new column cannot keep it up to date: it changes no address.
            if "email_normalized" in self.writes:
                self.customers.filter(pk=mine).update(**values)
            assert self.customers.get(pk=made.pk).visits == 0
        self.expected[made.pk] = email.lower()
        if "email_normalized" in self.writes:
            self.expected[mine] = email.lower()

    def values(self, email: str) -> dict[str, Any]:
        values = {"email": email, "email_normalized": email.lower()}
        return {name: values[name] for name in self.writes}

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
