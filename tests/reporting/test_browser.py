"""The page as a browser shows it: nothing sticks out, everything can be read, nothing is fetched, nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reporting.browser import Browser, Page

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
STICKS_OUT = """
JSON.stringify([...document.querySelectorAll('body, body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(one => one.outerHTML.slice(0, 200)))
"""
# The texts whose colour stands out from what is behind them by less than 4.5 to 1 (WCAG 2.2, 1.4.3).
FAINT = """
(() => {
  const parse = text => (text.match(/[0-9.]+/g) || []).map(Number);
  const light = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const rgb = parse(getComputedStyle(one).backgroundColor);
      if (rgb.length === 3 || rgb[3] > 0) return rgb;
    }
    return [255, 255, 255];
  };
  const faint = [];
  let seen = 0;
  for (const one of document.querySelectorAll('body, body *')) {
    if (['title', 'desc', 'style'].includes(one.localName)) continue;
    if (![...one.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    const style = getComputedStyle(one);
    const own = parse(one instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(own), light(ground(one))].sort((a, b) => b - a);
    seen += 1;
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push([one.outerHTML.slice(0, 120), style.color]);
  }
  return JSON.stringify([seen, faint]);
})()
"""


@pytest.fixture(scope="module", params=[(1400, False), (400, False), (1400, True)], ids=["wide", "narrow", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, made: Path) -> Page:
    width, dark = request.param
    return browser.open(made / "report.html", width=width, dark=dark)


@pytest.mark.parametrize("opened", [False, True])
def test_nothing_is_wider_than_the_window(page: Page, opened: bool) -> None:
    if opened:
        page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth === innerWidth")
    assert page.evaluate("document.querySelectorAll('svg').length") >= 7
    assert json.loads(page.evaluate(STICKS_OUT)) == []


def test_every_text_can_be_read(page: Page) -> None:
    seen, faint = json.loads(page.evaluate(FAINT))
    assert seen > 200
    assert faint == []


def test_a_dark_page_has_a_dark_ground(browser: Browser, made: Path) -> None:
    grounds = [
        browser.open(made / "report.html", width=800, dark=dark).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for dark in (False, True)
    ]
    assert grounds[0] == "rgb(255, 255, 255)"
    assert max(int(part) for part in grounds[1][4:-1].split(",")) < 64


def test_the_console_is_silent_and_nothing_is_fetched(page: Page, made: Path) -> None:
    assert page.complaints() == []
    assert page.requests() == [(made / "report.html").resolve().as_uri()]


def test_no_name_runs_as_a_script(page: Page) -> None:
    assert page.evaluate("typeof window.ran") == "undefined"
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.body.textContent.includes('<script>window.ran=1<b>')")


def test_every_picture_has_an_alternative_text(page: Page) -> None:
    told = page.evaluate(
        "JSON.stringify([...document.querySelectorAll('img, svg')].map(one => one.localName === 'img' ? one.alt :"
        " one.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent).join(' ')))"
    )
    texts = json.loads(told)
    assert len(texts) > 8
    assert all(len(text) > 10 for text in texts)


def test_every_picture_was_drawn_and_names_are_there_once(page: Page) -> None:
    assert page.evaluate("[...document.images].every(one => one.naturalWidth === 128)")
    ids = json.loads(page.evaluate("JSON.stringify([...document.querySelectorAll('[id]')].map(one => one.id))"))
    assert len(ids) == len(set(ids))
    targets = "[...document.querySelectorAll('a, use')].map(one => (one.getAttribute('href')).slice(1))"
    asked = set(json.loads(page.evaluate(f"JSON.stringify({targets})")))
    assert len(asked) > 10
    assert asked <= set(ids)


def test_the_browser_tells_what_a_bad_page_does(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><p style='width:900px;color:#bbb'>wide and faint</p><img src='missing.png'>"
        "<script>console.warn('spoken')</script></body>"
    )
    page = browser.open(bad, width=400)
    assert json.loads(page.evaluate(STICKS_OUT)) != []
    assert len(json.loads(page.evaluate(FAINT))[1]) == 1
    assert any("spoken" in line for line in page.complaints())
    assert any("missing.png" in line for line in page.requests())
