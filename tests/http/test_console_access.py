"""The console for everybody: by keyboard, on a phone, in the dark, to be read by a program. And its pictures."""

import os
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Route, expect

from conftest import TOKEN, Site
from console_page import JOB, card, fill, give_token, press, walk
from servers import ROOT, backfilld, wait_until

#: Where pictures for the documentation go, when they are wanted: see scripts/test-http.
PICTURES = os.environ.get("PICTURES")


def test_all_of_it_by_keyboard(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).get_by_role("button", name="Pause")).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the jobs")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.action") == "pause":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("is paused")
    assert site.state(JOB) == "paused"
    # The button that takes the place of the one that was pressed has the focus.
    expect(card(page).get_by_role("button", name="Resume")).to_be_focused()
    # Escape leaves a dialog, and the focus is where it was.
    resume = card(page).get_by_role("button", name="Cancel")
    resume.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(resume).to_be_focused()
    # Above another one that is paused its card moves up as it goes on, and takes the focus with it.
    fill(site, "orders", 10)
    site.submit("aaa", "orders", "filled IS NULL")
    backfilld(site.database, "pause", "aaa")
    expect(page.get_by_role("article").first).to_have_attribute("aria-label", "aaa")
    card(page).get_by_role("button", name="Resume").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article").first).to_have_attribute("aria-label", JOB)
    expect(card(page).get_by_role("button", name="Pause")).to_be_focused()
    # And the way to the content leads to no other page.
    page.goto(f"{site.url}/#/jobs/{JOB}")
    expect(page.get_by_role("heading", level=1, name=JOB)).to_be_focused()
    page.get_by_role("link", name="Skip to the jobs").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    expect(page.get_by_role("heading", level=1, name=JOB)).to_be_visible()


def tab_to(page: Page, what: Locator, key: str = "Tab") -> None:
    """Go on by the Tab key, or back, until it has the focus."""
    for _ in range(40):
        if what.evaluate("(node) => node === document.activeElement"):
            return
        page.keyboard.press(key)
    raise AssertionError(f"no way by the keyboard to {what}")


def test_the_token_by_keyboard(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).get_by_role("button", name="Pause")).to_be_enabled()
    button = page.get_by_role("banner").get_by_role("button", name="Token")
    dialog = page.get_by_role("dialog", name="Token")
    entry = dialog.get_by_label("Token")

    def give(token: str) -> None:
        expect(entry).to_be_focused()
        # What was kept is shown to nobody.
        expect(entry).to_have_value("")
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(button).to_be_focused()

    def kept() -> str | None:
        return page.evaluate("sessionStorage.getItem('backfilld.token')")

    tab_to(page, button)
    page.keyboard.press("Enter")
    # The focus stays in it: between its last control and its first there is the browser's own bar at most.
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    assert kept() is None
    page.keyboard.press("Space")
    # Nothing is no token.
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    give("guessed")
    expect(page.locator("#said")).to_contain_text("The token is kept for this tab")
    assert kept() == "guessed"
    # The first change shows that it is wrong, and forgets it.
    pause = card(page).get_by_role("button", name="Pause")
    tab_to(page, pause)
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("Not accepted: the token is not the one in http.token_file")
    expect(entry).to_be_focused()
    assert kept() is None
    page.keyboard.press("Escape")
    expect(pause).to_be_focused()
    expect(page.locator("#said")).to_have_text("Nothing was changed.")
    assert site.state(JOB) == "running"
    # Another one takes the place of the first.
    for token in ["guessed again", TOKEN]:
        tab_to(page, button, "Shift+Tab")
        page.keyboard.press("Enter")
        give(token)
        wait_until("it takes its place", lambda: kept() == token)
    # One that was closed and is opened again in the same breath is not taken for left.
    page.keyboard.press("Enter")
    page.evaluate("document.getElementById('token-dialog').close(); document.getElementById('token-button').click()")
    give(f"{TOKEN}-2")
    wait_until("it takes its place", lambda: kept() == f"{TOKEN}-2")
    page.keyboard.press("Enter")
    give(TOKEN)
    wait_until("it takes its place", lambda: kept() == TOKEN)
    # To leave it keeps what there is.
    page.keyboard.press("Enter")
    tab_to(page, dialog.get_by_role("button", name="Leave"))
    page.keyboard.press("Enter")
    expect(button).to_be_focused()
    assert kept() == TOKEN
    tab_to(page, pause)
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("is paused")
    assert site.state(JOB) == "paused"


def looks_right(page: Page) -> None:
    """On a phone and a screen, by day and by night: no sideways scrolling, and none of axe's rules broken: contrast, names, landmarks and the like."""
    for width in [360, 1280]:
        for scheme in ["light", "dark"]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            where = f"{scheme}, {width} px"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, where
            # A thumb hits what is this high.
            heights = page.locator("button:visible").evaluate_all("all => all.map((one) => one.getBoundingClientRect().height)")
            assert heights and min(heights) >= 40, where
            broken = Axe().run(page).response["violations"]
            assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in broken] == [], where


#: As long as a name may be, and with no place to break it at.
LONG = "x" * 63


def test_it_fits_and_can_be_read(site: Site, page: Page) -> None:
    fill(site, LONG)
    site.submit(LONG, LONG, "filled IS NULL", "[limits]", "rows_per_second = 500")
    fill(site, "orders", 10)
    states = {"done": "complete", "held": "pending", "stopped": "paused", "left": "cancelled", "broken": "failed"}
    for name in states:
        job = site.folder / f"{name}.toml"
        held = "" if name == "done" else "hold_before = ['start']"
        job.write_text(f'name = "{name}"\ntable = "orders"\n{held}\n[update]\nset = {{ filled = "value" }}\nwhere = "filled IS NULL"\n')
        backfilld(site.database, "submit", str(job))
        wait_until("it is taken up", lambda: site.state(name) == ("complete" if name == "done" else "pending"))
    backfilld(site.database, "pause", "stopped")
    backfilld(site.database, "cancel", "left")
    site.sql("UPDATE backfilld.job SET state = 'failed', error = 'division by zero', finished_at = now() WHERE name = 'broken'")
    for name, state in states.items():
        expect(card(page, name).locator(".state")).to_have_text(state)
    expect(card(page, LONG).locator(".why")).to_contain_text("limits.rows_per_second")
    expect(page.locator("figure").nth(1)).to_be_visible()
    expect(page.locator("figure").first).to_contain_text(LONG)
    expect(page.get_by_role("row", name=re.compile("^query latency")).first).to_be_visible()
    looks_right(page)


def test_one_job_in_detail_fits_and_can_be_read(site: Site, page: Page) -> None:
    fill(site, LONG, rows=2000)
    site.sql(f"ALTER TABLE {LONG} ADD CONSTRAINT {LONG} CHECK (filled <> 'name 7')")
    site.submit(LONG, LONG, f"filled IS NULL AND value <> '{2 * LONG}'", "[walk]", "workers = 2")
    page.goto(f"{site.url}/#/jobs/{LONG}")
    expect(page.locator("#quarantine")).to_contain_text(LONG)
    expect(page.locator("#slices-told")).to_contain_text("done")
    expect(page.locator("#events")).to_contain_text("submitted")
    page.get_by_text("The job file").click()
    expect(page.locator("#spec")).to_contain_text(LONG)
    looks_right(page)
    page.goto(f"{site.url}/#/jobs/{LONG}-2")
    expect(page.get_by_role("heading", level=1)).to_contain_text("There is no job")
    looks_right(page)


def test_each_dialog_fits_and_can_be_read(site: Site, page: Page) -> None:
    fill(site)
    site.submit(LONG, "users", "filled IS NULL", "[limits]", "rows_per_second = 500")
    expect(card(page, LONG).locator(".state")).to_have_text("running")
    dialog = page.get_by_role("dialog")
    press(page, "Cancel", LONG)
    expect(dialog).to_contain_text("What it has changed stays changed")
    looks_right(page)
    page.keyboard.press("Escape")
    press(page, "Tune", LONG)
    dialog.get_by_label("batch.target_duration").fill("never")
    looks_right(page)
    dialog.get_by_role("button", name="Tune").click()
    expect(dialog).to_contain_text("Changes need the daemon's token.")
    looks_right(page)
    give_token(page, "guessed")
    expect(dialog).to_contain_text("Not accepted")
    looks_right(page)
    give_token(page)
    expect(dialog.get_by_role("alert")).to_contain_text("batch.target_duration")
    looks_right(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    # What is said of a change too.
    press(page, "Pause", LONG)
    expect(page.locator("#said")).to_contain_text("is paused")
    looks_right(page)
    page.route("**/resume", lambda route: route.abort())
    press(page, "Resume", LONG)
    expect(page.locator("#said")).to_contain_text("It is not known whether")
    looks_right(page)


def test_a_daemon_that_is_away_leaves_what_can_be_read(site: Site, page: Page) -> None:
    walk(site)
    expect(card(page).locator(".state")).to_have_text("running")
    expect(page.locator("figure").nth(1)).to_be_visible()

    def in_part(route: Route) -> None:
        route.fulfill(status=503, json={"error": "the database does not answer: " + "x" * 80})

    page.route("**/api/v1/jobs", in_part)
    expect(page.locator("#connection")).to_have_text("in part")
    looks_right(page)
    site.kill()
    expect(page.locator("#connection")).to_have_text("away")
    expect(page.get_by_role("alert").first).to_contain_text("The daemon does not answer")
    looks_right(page)


def test_pictures(site: Site, page: Page) -> None:
    """What the README shows."""
    if PICTURES is None:
        pytest.skip("PICTURES names no folder: see scripts/test-http")
    folder = Path(ROOT / PICTURES)
    # Again, with a limit that these servers come close to.
    site.kill()
    site.settings["BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99"] = "30ms"
    site.settings["BACKFILLD__DAEMON__NAME"] = "db7"
    site.start()
    fill(site)
    fill(site, "orders", 1000)
    site.submit("orders-value-filled", "orders", "filled IS NULL")
    site.submit(JOB, "users", "filled IS NULL", "[limits]", "rows_per_second = 1500")
    expect(card(page).locator(".state")).to_have_text("running")
    page.wait_for_timeout(90_000)
    page.set_viewport_size({"width": 1280, "height": 1010})
    page.screenshot(path=folder / "console.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=folder / "console-dark.png")
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=folder / "console-phone.png")
