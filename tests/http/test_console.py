"""The console in a real browser: what it shows while things happen, and what each of its buttons does."""

import re

from playwright.sync_api import Page, Route, expect

from conftest import PATIENCE_MS, Site
from console_page import JOB, card, fill, give_token, locked, press, scanned, walk
from servers import Daemon, backfilld, wait_until


def test_a_job_is_followed_without_a_reload(site: Site, page: Page) -> None:
    expect(page.get_by_text("No job is known here")).to_be_visible()
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    expect(card(page).locator(".why")).to_contain_text("limits.rows_per_second = 500")
    expect(card(page).locator("dd").nth(3)).to_have_text(re.compile(r"^[1-9][\d,]* rows/s$"))
    seen = scanned(page)
    wait_until("more rows are told", lambda: scanned(page) > seen)
    assert float(card(page).get_by_role("progressbar").get_attribute("value") or "0") > 0
    expect(page.get_by_role("table").nth(-1)).to_contain_text("submitted")


def test_charts_have_their_limits_and_say_in_words_what_they_show(site: Site, page: Page) -> None:
    site.kill()
    site.settings["BACKFILLD__THROTTLE__REPLICATION_LAG__MAX_BYTES"] = "1GB"
    site.start()
    walk(site)
    for title in ["Rate of each job", "p99 of queries", "Replication lag"]:
        figure = page.locator("figure", has=page.get_by_text(title, exact=True))
        drawing = figure.get_by_role("img")
        expect(drawing).to_have_attribute("aria-label", re.compile(rf"^{title}, the last \d+ minutes\. .*now [\d,.]+ (ms|s|rows/s).*limit [\d,.]+ "))
        expect(figure.locator(".legend .of-limit").first).to_be_visible()
        expect(figure.locator("path.series-0")).to_have_attribute("d", re.compile(r"^M.*L"))
    # A replica is read in seconds and in bytes: also after some more samples each stays what it is.
    page.wait_for_timeout(12_000)
    for title, replicas in [("Replication lag", 2), ("Replication lag in bytes", 1)]:
        figure = page.locator("figure", has=page.get_by_text(title, exact=True))
        expect(figure.locator(".legend li:not(.of-limit)")).to_have_count(replicas)


def test_each_button_does_what_it_says(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    press(page, "Pause")
    give_token(page)
    expect(page.locator("#said")).to_have_text(f"job {JOB} is paused; no batch is in flight")
    assert site.state(JOB) == "paused"
    expect(card(page).locator(".state")).to_have_text("paused")
    expect(card(page).get_by_role("button", name="Pause")).to_be_hidden()
    # The token is asked for once.
    press(page, "Resume")
    expect(card(page).locator(".state")).to_have_text("running")
    assert site.state(JOB) == "running"

    press(page, "Tune")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("rows_per_second").fill("700")
    dialog.get_by_label("batch.target_duration").fill("never")
    dialog.get_by_role("button", name="Tune").click()
    # What is wrong is told where it was written, which stays as it was.
    expect(dialog.get_by_role("alert")).to_contain_text("batch.target_duration")
    expect(dialog.get_by_label("rows_per_second")).to_have_value("700")
    dialog.get_by_label("batch.target_duration").fill("40ms")
    dialog.get_by_role("button", name="Tune").click()
    expect(card(page).locator(".why")).to_contain_text("limits.rows_per_second = 700")
    tuned = site.sql(f"SELECT spec -> 'limits' -> 'rows_per_second' = '700', spec -> 'batch' ->> 'target_duration' FROM backfilld.job WHERE name = '{JOB}'")
    assert tuned == "t|40ms"

    cancels: list[str] = []
    page.on("request", lambda request: cancels.append(request.url) if request.url.endswith("/cancel") else None)
    press(page, "Cancel")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("What it has changed stays changed")
    dialog.get_by_role("button", name="Leave it").click()
    assert site.state(JOB) == "running"
    press(page, "Cancel")
    dialog.get_by_role("button", name=f"Cancel {JOB}").click()
    expect(card(page).locator(".state")).to_have_text("cancelled")
    assert site.state(JOB) == "cancelled"
    assert len(cancels) == 1
    press(page, "Retry")
    expect(card(page).locator(".state")).to_have_text("running")
    actors = site.sql("SELECT DISTINCT actor FROM backfilld.event WHERE kind IN ('paused', 'resumed', 'tuned', 'cancelled')")
    assert actors == "HTTP from 127.0.0.1"


def test_a_job_that_waits_for_a_person_is_approved(site: Site, page: Page) -> None:
    fill(site, rows=1000)
    job = site.folder / "held.toml"
    job.write_text(f'name = "{JOB}"\ntable = "users"\nhold_before = ["start"]\n[update]\nset = {{ filled = "value" }}\nwhere = "filled IS NULL"\n')
    backfilld(site.database, "submit", str(job))
    expect(card(page).locator(".why")).to_contain_text("approve")
    # Not a bar that says that something is going on.
    assert card(page).get_by_role("progressbar").get_attribute("value") == "0"
    press(page, "Approve")
    give_token(page)
    expect(card(page).locator(".state")).to_have_text("complete")
    expect(card(page).locator("dd").first).to_have_text("100.0 %")


def test_a_wrong_token_changes_nothing_and_is_asked_for_again(site: Site, page: Page) -> None:
    walk(site)
    press(page, "Pause")
    give_token(page, "guessed")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Not accepted: the token is not the one in http.token_file")
    assert site.state(JOB) == "running"
    dialog.get_by_role("button", name="Leave").click()
    expect(page.locator("#said")).to_have_text("Nothing was changed.")
    assert site.state(JOB) == "running"
    press(page, "Pause")
    give_token(page)
    expect(card(page).locator(".state")).to_have_text("paused")
    # It stands nowhere that outlives the tab.
    kept = page.evaluate("[document.cookie, Object.keys(localStorage).length, location.href]")
    assert kept == ["", 0, f"{site.url}/"]


def test_a_change_whose_answer_is_lost_is_not_said_to_be_unmade(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/pause", lose)
    press(page, "Pause")
    give_token(page)
    expect(page.locator("#said")).to_have_text(f"It is not known whether {JOB} was changed: the daemon does not answer")
    assert site.state(JOB) == "paused"
    # What stands there a moment later is how it is.
    expect(card(page).locator(".state")).to_have_text("paused")


def test_a_page_that_outlives_its_daemons_upgrade_says_so(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")

    def of_next_version(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "version": "99.0.0"})

    page.route("**/api/v1/daemon", of_next_version)
    expect(page.locator("#said")).to_contain_text("The daemon is of version 99.0.0 now, and this page of")
    expect(page.locator("#daemon")).to_contain_text(" 99.0.0, ")
    # It goes on meanwhile.
    seen = scanned(page)
    wait_until("more rows are told", lambda: scanned(page) > seen)


def test_several_daemons_on_one_page(site: Site, page: Page) -> None:
    """Each reading says whose it is, and no chart shows one daemon's part of a limit as the whole."""
    walk(site, "[walk]", "workers = 2")
    expect(card(page).locator(".state")).to_have_text("running")
    of_first = page.get_by_role("row", name=re.compile("^query latency")).first
    expect(of_first).to_be_visible()
    names = [site.settings["BACKFILLD__DAEMON__NAME"], "another"]
    expect(of_first).not_to_contain_text(names[0])
    other = Daemon(site.database, site.folder / "other.log", **site.settings | {"BACKFILLD__DAEMON__NAME": names[1]})
    try:
        for name in names:
            expect(page.get_by_role("row", name=re.compile(rf"^query latency.*\({name}\)")).first).to_be_visible()
        several_on_a_chart(page)
    finally:
        other.stop()
    expect(page.get_by_role("row", name=re.compile(r"\(another\)"))).to_have_count(0, timeout=2 * PATIENCE_MS)
    expect(of_first).not_to_contain_text(names[0])


def several_on_a_chart(page: Page) -> None:
    chart = page.locator("figure", has=page.get_by_text("Rate of each job", exact=True))
    expect(chart.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"now [\d,]+ rows/s"))
    # The limit in this daemon's memory is its own part of it only.
    expect(chart.locator(".legend .of-limit")).to_have_count(0)


def test_a_daemon_that_is_gone_and_comes_back(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    expect(page.locator("#connection")).to_have_text("live")
    site.kill()
    expect(page.locator("#connection")).to_have_text("away")
    expect(page.get_by_role("alert").first).to_contain_text("The daemon does not answer")
    expect(card(page)).to_be_visible()
    site.start()
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#away")).to_be_hidden()
    expect(card(page).locator(".state")).to_have_text("running")


def test_a_database_that_is_gone_and_comes_back(site: Site, page: Page) -> None:
    """The daemon still answers: it is told what is away, and what is shown stays."""
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    on_it = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{site.name}'"
    site.primary.run_psql("postgres", f"ALTER DATABASE {site.name} ALLOW_CONNECTIONS false; {on_it}").check_returncode()
    expect(page.locator("#connection")).to_have_text("in part")
    expect(page.get_by_role("alert").first).to_contain_text("The daemon is here, but cannot tell how its jobs stand")
    expect(card(page)).to_be_visible()
    site.primary.run_psql("postgres", f"ALTER DATABASE {site.name} ALLOW_CONNECTIONS true").check_returncode()
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#away")).to_be_hidden()
    expect(card(page).locator(".state")).to_have_text("running")


def test_a_pause_that_ends_by_itself_says_when(site: Site, page: Page) -> None:
    walk(site)
    backfilld(site.database, "pause", JOB, "--for", "2h")
    expect(card(page).locator(".why")).to_have_text(re.compile(r"^Paused until [\d: -]+; then it goes on by itself\.$"))
    backfilld(site.database, "pause", JOB)
    expect(card(page).locator(".why")).to_have_text("Paused until somebody resumes it.")


def test_a_batch_that_fails_again_and_again_is_told_of(site: Site, page: Page) -> None:
    fill(site)
    with locked(site, "id = 1"):
        site.submit(JOB, "users", "filled IS NULL", "[limits]", "rows_per_second = 500", "lock_timeout = '50ms'", "max_retries = 100000", "[batch]", "min_rows = 1")
        expect(card(page).locator(".why")).to_have_text(
            re.compile(r"^It makes no headway: a batch has failed \d+ times in a row and is tried again: canceling statement due to lock timeout")
        )
    expect(card(page).locator(".why")).to_contain_text("limits.rows_per_second = 500")
    expect(card(page).locator(".why")).not_to_contain_text("failed")
    expect(card(page).locator(".state")).to_have_text("running")


def test_one_slice_that_fails_again_and_again_is_told_of_beside_the_pace_of_the_other(site: Site, page: Page) -> None:
    fill(site)
    with locked(site, "id = 1"):
        limits = ["[limits]", "rows_per_second = 500", "lock_timeout = '50ms'", "max_retries = 100000", "[batch]", "min_rows = 1"]
        site.submit(JOB, "users", "filled IS NULL", *limits, "[walk]", "workers = 2")
        expect(card(page).locator(".why")).to_have_text(
            re.compile(
                r"^As fast as it may: .*limits\.rows_per_second = 500.*\. In one of its slices a batch has failed \d+ times in a row"
                r" and is tried again: canceling statement due to lock timeout.*\.$"
            )
        )
        expect(card(page).locator(".why")).to_have_attribute("data-is", "slow")
        seen = scanned(page)
        wait_until("the other slice goes on", lambda: scanned(page) > seen)
        expect(card(page).locator(".why")).to_contain_text("In one of its slices a batch has failed")
    expect(card(page).locator(".why")).not_to_contain_text("failed")
    expect(card(page).locator(".why")).to_contain_text("limits.rows_per_second = 500")


def test_a_daemon_of_before_some_keys_is_shown_without_them(site: Site, page: Page) -> None:
    """While several are upgraded one after the other, the page of a new one may be answered by an old one."""
    later = {"retrying", "sweep", "resume_at", "rows_per_second", "utilisation"}

    def of_before(told: object, keys: set[str]) -> object:
        if isinstance(told, list):
            return [of_before(one, keys) for one in told]
        if isinstance(told, dict):
            return {key: of_before(value, keys) for key, value in told.items() if key not in keys}
        return told

    def answer(route: Route, keys: set[str]) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=of_before(response.json(), keys))

    walk(site)
    expect(card(page).locator(".why")).to_contain_text("limits.rows_per_second = 500")
    page.route(re.compile("/api/v1/jobs"), lambda route: answer(route, later - {"rows_per_second"}))
    page.route("**/api/v1/throttle", lambda route: answer(route, later))
    page.goto(f"{site.url}/#/jobs/{JOB}")
    expect(page.locator("#slices-told")).to_have_text("0 of 1 done, 1 worked on now.")
    page.goto(f"{site.url}/")
    expect(page.get_by_role("row", name=re.compile("^query latency")).first).to_be_visible()
    expect(card(page).locator(".why")).to_have_text(re.compile(r"^As fast as it may: .*limits\.rows_per_second = 500.*\.$"))
    for never in ["undefined", "NaN"]:
        expect(page.locator("main")).not_to_contain_text(never)
    backfilld(site.database, "pause", JOB, "--for", "2h")
    expect(card(page).locator(".why")).to_have_text("Paused until somebody resumes it.")


def test_jobs_that_have_ended_are_folded_away(site: Site, page: Page) -> None:
    fill(site, rows=1)
    old = "jsonb_build_object('table', 'public.users', 'update', '{\"set\": {\"filled\": \"value\"}, \"where\": \"filled IS NULL\"}'::jsonb, 'hold_before', '[\"start\"]'::jsonb)"
    site.sql(f"SELECT backfilld.submit('old-' || n, {old}), backfilld.cancel('old-' || n) FROM generate_series(1, 15) n")
    expect(page.get_by_text("3 more that have ended")).to_be_visible()
    assert page.get_by_role("article").count() == 12
    page.get_by_text("3 more that have ended").click()
    expect(page.get_by_role("article")).to_have_count(15)


def test_going_to_and_fro_does_not_ask_more_often(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    for _ in range(10):
        page.evaluate(f"location.hash = '#/jobs/{JOB}'; 0")
        page.evaluate("location.hash = '#/'; 0")
    expect(page.locator("#connection")).to_have_text("live")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/api/v1/daemon") else None)
    page.wait_for_timeout(9_000)
    # One each two seconds, and one more that was wanted before.
    assert 1 <= len(asked) <= 6


def test_one_job_in_detail(site: Site, page: Page) -> None:
    fill(site, rows=2000)
    site.sql("ALTER TABLE users ADD CONSTRAINT \"<b>no</b>\" CHECK (filled <> 'name 7')")
    site.submit(JOB, "users", "filled IS NULL")
    card(page).get_by_role("link", name=JOB).click()
    expect(page.get_by_role("heading", level=1, name=JOB)).to_be_focused()
    expect(page.locator("#quarantine")).to_contain_text("23514")
    expect(page.locator("#quarantine td").first).to_have_text("7")
    expect(page.locator("#slices-told")).to_contain_text("done")
    expect(card(page).locator(".why")).to_contain_text("1 row could not be changed")
    page.get_by_text("The job file").click()
    expect(page.locator("#spec")).to_contain_text('"filled": "value"')
    # What the database says is shown as text, whatever it is.
    expect(page.locator("#quarantine")).to_contain_text("<b>no</b>")
    page.go_back()
    expect(page.get_by_role("heading", level=1, name="Jobs")).to_be_focused()
    page.goto(f"{site.url}/#/jobs/never-heard-of")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no job never-heard-of")
    # Nothing of another job stands below it.
    for told in ["#spec", "#slices-told", "#quarantine-told"]:
        expect(page.locator(told)).to_have_text("")
