"""What the tests of the console do again and again."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page

from conftest import TOKEN, Site

JOB = "users-name-filled"
ROWS = 200_000


def fill(site: Site, table: str = "users", rows: int = ROWS) -> None:
    site.sql(f"""CREATE TABLE {table} (id bigint PRIMARY KEY, value text NOT NULL, filled text);
                 INSERT INTO {table} SELECT n, 'name ' || n, NULL FROM generate_series(1, {rows}) n;
                 ANALYZE {table}""")


def walk(site: Site, *more: str) -> None:
    """A job that takes minutes, unless it is tuned."""
    fill(site)
    site.submit(JOB, "users", "filled IS NULL", "[limits]", "rows_per_second = 500", *more)


def card(page: Page, job: str = JOB):
    return page.get_by_role("article", name=job)


def press(page: Page, button: str, job: str = JOB) -> None:
    card(page, job).get_by_role("button", name=button).click()


def give_token(page: Page, token: str = TOKEN) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Token").fill(token)
    dialog.get_by_role("button", name="Use it").click()


def scanned(page: Page) -> int:
    told = card(page).locator("dd").nth(2).inner_text()
    return int(told.split(" of ")[0].replace(",", ""))


@contextmanager
def locked(site: Site, where: str) -> Iterator[None]:
    """Rows of `users` that another session has locked."""
    with subprocess.Popen(
        [site.primary.psql, "--no-psqlrc", "--quiet", "--tuples-only", site.database],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(f"BEGIN; SELECT 'locked' FROM users WHERE {where} FOR UPDATE;\n")
        other.stdin.flush()
        assert "locked" in other.stdout.readline()
        yield
