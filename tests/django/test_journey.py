"""The whole change, from a new column to the end of the old one, under an application at work."""

import time

from conftest import Database
from servers import wait_until
from shop.stages import JOB
from traffic import Version

ROWS = 10_000
# For so long two versions of the code are at work side by side, as they are while one is deployed.
TOGETHER_SECONDS = 1


def columns(database: Database) -> set[str]:
    """The columns, a question mark behind those that may be NULL."""
    told = database.sql(
        "SELECT column_name || CASE is_nullable WHEN 'YES' THEN '?' ELSE '' END "
        "FROM information_schema.columns WHERE table_name = 'shop_customer'"
    )
    return set(told.split())


def test_five_stages_with_the_application_at_work(journey: Database) -> None:
    journey.managed("migrate", "shop", "0001")
    journey.sql(
        f"INSERT INTO shop_customer (email, visits) SELECT 'User' || n || '@Example.COM', 0 "
        f"FROM generate_series(1, {ROWS}) n; ANALYZE shop_customer"
    )
    old = Version("0001_initial", ("email",), ROWS, 0)
    versions = [old]
    try:
        # 1. A new column. 2. The code that writes it, first beside the old code.
        journey.managed("migrate", "shop", "0002")
        writes = Version("0002_customer_email_normalized", ("email", "email_normalized"), ROWS, 1)
        versions.append(writes)
        time.sleep(TOGETHER_SECONDS)
        old.stop()

        # 3. The rows that were there.
        journey.managed("migrate", "shop", "0003")
        too_early(journey, "0004", "it is pending and has not started yet", "A daemon must run")
        daemon = journey.start_daemon()
        progress = f"SELECT 1 FROM backfilld.status WHERE name = '{JOB}' AND rows_changed > 0"
        wait_until("the first rows", lambda: journey.sql(progress) == "1")
        too_early(journey, "0004", "it is running, ", f"Wait for it with `backfilld wait {JOB}`")
        # The last one too, even where the one before it was only said to be applied.
        journey.managed("migrate", "shop", "0004", "--fake")
        too_early(journey, "0005", "it is running, ", f"Wait for it with `backfilld wait {JOB}`")
        journey.managed("migrate", "shop", "0003", "--fake")
        journey.backfilld("tune", JOB, "rows_per_second=0")
        journey.backfilld("wait", JOB, "--timeout", "60s")
        assert journey.sql("SELECT count(*) FROM shop_customer WHERE email_normalized IS NULL") == "0"
        assert columns(journey) == {"id", "email", "visits", "email_normalized"}

        # 4. No NULL any more, and nobody needs the old column: first beside the code that writes it.
        journey.managed("migrate", "shop", "0004")
        assert columns(journey) == {"id", "email?", "visits", "email_normalized"}
        wrong = "SELECT count(*) FROM shop_customer WHERE email_normalized <> lower(email)"
        assert journey.sql(wrong) == "0"
        last = Version("0005_remove_customer_email", ("email_normalized",), ROWS, 2)
        versions.append(last)
        time.sleep(TOGETHER_SECONDS)
        writes.stop()

        # 5. The old column goes.
        journey.managed("migrate", "shop")
        assert columns(journey) == {"id", "visits", "email_normalized"}
        time.sleep(TOGETHER_SECONDS)
        daemon.stop()
    finally:
        for version in versions:
            version.stop()

    for version in versions:
        assert version.failures == []
        assert version.requests > 50, f"{version.stage}: {version.requests} requests"
    expected = {key: f"user{key}@example.com" for key in range(1, ROWS + 1)}
    for version in versions:
        expected |= version.expected
    rows = journey.sql("SELECT id, email_normalized FROM shop_customer").splitlines()
    found = {int(key): email for key, email in (row.split("|") for row in rows)}
    assert found == expected


def too_early(database: Database, target: str, told: str, advice: str) -> None:
    """A migration that needs the rows refuses to run, says why, and changes nothing."""
    applied = "SELECT string_agg(name, ' ' ORDER BY name) FROM django_migrations WHERE app = 'shop'"
    before = (columns(database), database.sql(applied))
    message = database.refused("migrate", "shop", target)
    assert message.startswith("BackfillError: "), message
    assert f'backfill "{JOB}" on public.shop_customer is not complete: {told}' in message
    assert f"\nHint: {advice}" in message
    assert (columns(database), database.sql(applied)) == before
