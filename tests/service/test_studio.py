"""The studio in a real browser: every view's way through, on a running service."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from cynosure import Client, __version__
from cynosure.contract import ControlOnCard, GenerateRequest, IpAdapterOnCard, ModelCard
from cynosure.errors import JobExpired
from cynosure.metadata import encoded_picture, png_bytes
from cynosure.resolving import resolve
from harness.processes import wait_until
from jobs.settings import StoreSettings
from tests.chromium import Visit, chromium
from tests.conftest import serving
from tests.service.test_openapi import Gateway

VIEWS = ("draw", "compare", "explain", "jobs", "server")
MOST_BYTES = 100_000  # of the first paint, on a server that has drawn nothing yet
SHIFT = """new Promise((resolve) => {
  const sum = (list) => resolve(list.getEntries().reduce((total, one) => total + one.value, 0));
  new PerformanceObserver(sum).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => resolve(0), 500);
})"""
"""How far things moved while the page loaded: web.dev's cumulative layout shift."""
PHONE = {"width": 360, "height": 740}
MANY = 120
CSV = b'class_label,seed,steps,custom_id\nbag,1,2,"one, two"\ncoat,2,2,\n'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, server_url: str) -> Iterator[Visit]:
    one = Visit(browser, server_url)
    yield one
    one.close()


def choose(page: Page, label: str, *, steps: int, seed: int = 7) -> None:
    page.get_by_role("radio", name=label, exact=True).check()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_label("Seed", exact=True).fill(str(seed))


def loaded(page: Page, selector: str, count: int) -> None:
    """Wait until so many pictures are there, each of them drawn."""
    expect(page.locator(f"{selector} img[src*='/images/']")).to_have_count(count)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (56, 56), shade).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_first_page_is_light_quiet_and_strict(visit: Visit) -> None:
    answer = visit.page.goto(visit.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    expect(visit.page.get_by_role("button", name="Draw")).to_be_visible()
    visit.page.wait_for_load_state("networkidle")
    its_own = [
        request for request in visit.requests if "/jobs" not in request.url
    ]  # other tests' pictures are shown too
    sizes = {request.url: request.sizes()["responseBodySize"] for request in its_own}
    assert sum(sizes.values()) <= MOST_BYTES, sizes
    assert visit.page.evaluate(SHIFT) < 0.02


def test_the_documentation_page_tries_out_what_it_describes(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/docs")
    expect(page.get_by_role("button", name="Authorize")).to_be_visible()
    for path, status in (("/generate", "200"), ("/plan", "200"), ("/sweeps", "202"), ("/batches", "202")):
        operation = page.locator(".opblock-post", has=page.locator(f'[data-path="{path}"]'))
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response-col_status").last
        expect(answer).to_contain_text(status)


def test_what_is_on_screen_draws_the_same_picture_elsewhere(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    choose(page, "sneaker", steps=6)
    page.get_by_role("radio", name="Combined").check()
    page.get_by_label("Scale", exact=True).fill("2.5")
    page.get_by_role("slider", name="Guide from").fill("0.2")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Deep blocks run").select_option("every 3, until 80 %")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    picture = page.get_by_alt_text("sneaker, picture 1 of 1")
    expect(picture).to_have_attribute("src", re.compile("/images/0.png"))  # previews are over
    drawn = httpx.get(str(picture.get_attribute("src"))).content
    snippets = {}
    for name in ("curl", "Python", "Command line"):
        page.get_by_role("tab", name=name).click()
        snippets[name] = page.get_by_role("tabpanel").inner_text()
    assert "--cache 3:0.8" in snippets["Command line"]
    visit.keep("draw")

    subprocess.run(["bash", "-c", snippets["curl"]], cwd=tmp_path, check=True)
    assert (tmp_path / "sneaker.png").read_bytes() == drawn
    (tmp_path / "sneaker.png").unlink()
    subprocess.run([sys.executable, "-c", snippets["Python"]], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "sneaker.png") as ours, Image.open(io.BytesIO(drawn)) as theirs:
        assert ours.tobytes() == theirs.tobytes()
    command = snippets["Command line"].replace("cynosure", str(Path(sys.executable).with_name("cynosure")), 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    [saved] = (tmp_path / "out").iterdir()
    assert saved.read_bytes() == drawn


def test_a_link_opens_a_request_and_what_is_wrong_stands_beside_its_field(visit: Visit) -> None:
    page = visit.open('request={"class_label":"bag","steps":5000,"seed":3,"guidance_rescale":0.5}')
    expect(page.get_by_role("radio", name="bag")).to_be_checked()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("3")
    expect(page.get_by_text("guidance_rescale = 0.5")).to_be_visible()
    steps = page.locator("[data-field=steps]")
    expect(steps.locator(".error")).to_have_text(re.compile("at most 1000"))
    expect(page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_label("Steps")).to_be_focused()
    visit.keep("error")
    page.get_by_label("Steps").fill("2")
    expect(steps.locator(".error")).to_be_hidden()
    page.get_by_role("button", name="Leave guidance_rescale out").click()
    expect(page.get_by_role("tabpanel")).to_contain_text('{"model":"fashion","class_label":"bag","steps":2,"seed":3}')


def test_a_running_job_outlives_a_reload_and_is_cancelled(visit: Visit) -> None:
    page = visit.open()
    choose(page, "bag", steps=900)
    page.get_by_label("Pictures").fill("32")
    page.get_by_label("Pictures").blur()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".stage .state")).to_contain_text("evaluations")
    page.reload()
    expect(page.locator(".stage .state")).to_contain_text("evaluations")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".stage .state")).to_have_text("Cancelled.")


def test_the_grid_and_the_dial_show_what_the_scale_does(visit: Visit) -> None:
    page = visit.open("compare")
    choose(page, "coat", steps=2)
    page.get_by_label("Classifier-free: scales").fill("0, 4")
    page.get_by_role("button", name="Draw the grid").click()
    expect(page.locator("main > progress")).to_have_js_property("value", 1)
    loaded(page, ".grid", 1 + 2 + 6 + 6)
    cell = page.get_by_role("link", name="Classifier-free, scale 4:")
    cell.hover()
    shown = page.locator(".shown")
    expect(shown).to_contain_text('"guidance_mode":"classifier_free"')
    expect(shown).to_contain_text('"guidance_scale":4')

    page.get_by_role("button", name="Draw the dial").click()
    expect(page.get_by_text("Drawn. Move the dial.")).to_be_visible()
    loaded(page, ".dial-pictures", 10)
    diverse = page.locator(".dial-pictures img").first.get_attribute("src")
    page.get_by_role("slider", name="Scale").press("End")
    expect(page.locator(".dial-pictures img").first).not_to_have_attribute("src", diverse or "")
    visit.keep("compare")

    cell.click()
    expect(page.get_by_role("radio", name="coat")).to_be_checked()
    expect(page.get_by_label("Scale", exact=True)).to_have_value("4")
    page.go_back()
    loaded(page, ".grid", 1 + 2 + 6 + 6)
    loaded(page, ".dial-pictures", 10)


def test_each_step_is_explained_beside_its_picture(visit: Visit) -> None:
    page = visit.open("explain")
    choose(page, "shirt", steps=5)
    page.get_by_role("button", name="Explain").click()
    slider = page.get_by_role("slider", name="Step")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("Step 5 of 5"))
    loaded(page, ".explain-picture", 1)
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "Step 1 of 5, timestep 999")
    expect(page.locator(".explain-picture img")).to_have_attribute("src", re.compile("^data:image/png"))
    with Client(visit.url) as client:
        [job] = client.jobs(limit=1).jobs
        telemetry = client.job(job.id).telemetry
    assert telemetry is not None
    charts = page.locator(".chart:visible")
    expect(charts).to_have_count(4)
    expect(charts.first.locator("output")).to_have_text(
        re.compile(rf"^{100 * telemetry[0][0]['probability']:.2g}".rstrip("0."))
    )
    for path in charts.locator(".line").all():
        assert str(path.get_attribute("d")).count("L") == 4
    visit.keep("explain")


def test_a_picture_gives_its_request_back_or_is_drawn_over_and_a_list_is_a_batch(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    body = {"class_label": "trouser", "scale": 4, "steps": 3, "sampler": "euler", "seed": 11}
    own = httpx.post(f"{visit.url}/generate", json=body, headers={"Accept": "image/png"}, timeout=60).content
    page.set_input_files("input[type=file]", {"name": "own.png", "mimeType": "image/png", "buffer": own})
    expect(page.get_by_role("radio", name="trouser")).to_be_checked()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("11")
    expect(page.get_by_label("Sampler")).to_have_value("euler")

    page.set_input_files("input[type=file]", {"name": "other.png", "mimeType": "image/png", "buffer": png(200)})
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.locator("canvas.mask")
    canvas.press("Space")
    expect(page.get_by_role("tabpanel")).to_contain_text("mask.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save mask").click()
    with Image.open(download.value.path()) as saved:
        assert saved.convert("L").getextrema() == (0, 255)
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    visit.keep("from-a-picture")
    with Client(visit.url) as client:
        [job] = client.jobs(limit=1).jobs
    assert job.request.inputs.keys() == {"init_image", "mask_image"}
    assert job.request.inputs["init_image"].size == len(png(200))

    page.get_by_role("button", name="Remove").click()
    page.set_input_files("input[type=file]", {"name": "other.gif", "mimeType": "image/gif", "buffer": b"GIF89a"})
    expect(page.get_by_role("alert").first).to_have_text("other.gif is no PNG, JPEG or WebP picture.")
    page.set_input_files("input[type=file]", {"name": "many.csv", "mimeType": "text/csv", "buffer": CSV})
    batch = page.get_by_role("region", name="Batch")
    expect(batch.get_by_text("2 of 2 drawn")).to_be_visible()
    with page.expect_download() as download:
        batch.get_by_role("button", name="Save as ZIP").click()
    assert b"one_ two-00.png" in Path(download.value.path()).read_bytes()
    wrong = CSV.replace(b"coat", b"cot")
    page.set_input_files("input[type=file]", {"name": "wrong.csv", "mimeType": "text/csv", "buffer": wrong})
    expect(batch.get_by_role("alert")).to_contain_text("line 2: No class 'cot'")


def test_jobs_are_listed_filtered_and_varied(visit: Visit) -> None:
    with Client(visit.url) as client:
        job = client.wait(client.submit(class_label="dress", steps=2, seed=21).id)
        page = visit.open("jobs")
        row = page.locator(".virtual-row", has=page.get_by_role("link", name="dress")).first
        expect(row).to_be_visible()
        row.get_by_role("button", name="Vary").click()
        expect(page.locator("#said")).to_have_text("Posted with another seed.")
        [varied] = client.jobs(limit=1).jobs
        assert (varied.request.class_label, varied.request.steps) == (job.request.class_label, 2)
        assert varied.request.seed != 21
        client.wait(varied.id)
    expect(page.locator(".virtual-row").first.get_by_role("link", name="dress")).to_be_visible()
    page.get_by_label("State").select_option("failed")
    expect(row).to_be_hidden()  # no dress has failed; other tests' jobs may have
    page.get_by_label("State").select_option("succeeded")
    expect(row).to_be_visible()
    visit.keep("jobs")
    delete = page.locator(".virtual-row").first.get_by_role("button", name=re.compile("Delete|Sure"))
    delete.click()
    expect(delete).to_have_text("Sure?")
    delete.click()
    expect(page.locator("#said")).to_have_text("Deleted.")
    with Client(visit.url) as client, pytest.raises(JobExpired):
        client.job(varied.id)


def test_of_many_jobs_only_those_in_view_are_on_the_page(visit: Visit) -> None:
    with Client(visit.url) as client:
        batch = client.submit_batch([{"class_label": "bag", "steps": 1, "seed": seed} for seed in range(MANY)])
        page = visit.open("jobs")
        rows = page.locator(".virtual-row")
        expect(rows.first).to_be_visible()

        def are_listed() -> bool:
            page.keyboard.press("End")
            return int(rows.first.get_attribute("aria-setsize") or 0) >= MANY

        wait_until(are_listed, what="all are listed")
        client.cancel_batch(batch.id)  # other tests look at the newest job
    assert rows.count() < MANY / 2


def test_the_server_is_shown_as_it_is(visit: Visit) -> None:
    page = visit.open("server")
    fashion = page.get_by_role("region", name="fashion")
    expect(fashion.locator("dd").first).to_have_text("1")
    expect(fashion).to_contain_text("ankle boot")
    expect(page.locator(".totals").first).to_contain_text(__version__)
    visit.keep("server")


def test_a_model_that_no_worker_holds_is_shown_as_one_whose_jobs_wait(
    browser: Browser, store_settings: StoreSettings, card: ModelCard
) -> None:
    settings = store_settings.model_copy(update={"accept_without_worker": True})
    with ThreadPoolExecutor(1) as pool:
        gateway = pool.submit(Gateway, settings, card).result()
    gateway.start()
    try:
        visit = Visit(browser, gateway.url)
        page = visit.page
        page.goto(f"{gateway.url}/#server")
        page.get_by_role("textbox", name="API key").fill(gateway.token)
        page.get_by_role("button", name="Use").click()
        fashion = page.get_by_role("region", name="fashion")
        expect(fashion.locator("dd").first).to_have_text("1")
        waits = fashion.get_by_text("No worker holds this model")
        expect(waits).to_be_hidden()
        gateway.lose_worker()
        expect(waits).to_be_visible()
        expect(fashion.locator("dd").first).to_have_text("0")
        visit.keep("server-without-worker")
        page = visit.open()
        expect(page.locator(".plan")).to_contain_text("a picture waits for the next one")
        expect(page.get_by_role("alert").filter(visible=True)).to_have_count(0)
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        visit.close()
    finally:
        gateway.stop()


def test_a_control_has_a_picture_and_what_can_not_be_used_says_why(
    browser: Browser, store_settings: StoreSettings, card: ModelCard
) -> None:
    nets = (ControlOnCard(name="edges", digest="e" * 64), ControlOnCard(name="depth", fault="it is for Flux"))
    adapter = IpAdapterOnCard(kind="plus", digest="a" * 64)
    card = card.model_copy(update={"takes_controls": True, "controls": nets, "ip_adapter": adapter})
    with ThreadPoolExecutor(1) as pool:
        gateway = pool.submit(Gateway, store_settings, card).result()
    gateway.start()
    try:
        visit = Visit(browser, gateway.url)
        page = visit.page
        page.goto(gateway.url)
        page.get_by_role("textbox", name="API key").fill(gateway.token)
        page.get_by_role("button", name="Use").click()
        add = page.get_by_role("button", name="Add a control")
        add.click()
        line = page.get_by_role("group", name="Control 1")
        file = line.locator("input[type=file]")
        expect(file).to_be_focused()
        expect(line.locator("[data-field=image] .error")).to_contain_text(
            "give the picture that 'edges' is to steer by"
        )
        expect(line.get_by_role("option", name="depth")).to_be_disabled()
        page.get_by_text("1 that fashion can't use").click()
        expect(page.get_by_text("it is for Flux")).to_be_visible()
        file.set_input_files({"name": "photo.png", "mimeType": "image/png", "buffer": png(200)})
        line.get_by_label("Use the picture").select_option("canny")
        line.get_by_role("slider", name="Steer until").fill("0.6")
        line.get_by_label("Scale", exact=True).fill("0.8")
        expect(line.get_by_role("img")).to_be_visible()
        page.get_by_role("button", name="Add a picture to the prompt").click()
        prompt = page.get_by_role("group", name="Image prompt 1").locator("input[type=file]")
        prompt.set_input_files({"name": "style.png", "mimeType": "image/png", "buffer": png(9)})
        page.get_by_role("tab", name="Command line").click()
        expect(page.get_by_role("tabpanel")).to_contain_text(
            "--control edges:edges.png,preprocess=canny,end=0.6,scale=0.8"
        )
        expect(page.get_by_role("tabpanel")).to_contain_text("--image-prompt image-prompts.png:0.6")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        with Client(gateway.url, api_key=gateway.token) as client:
            [job] = client.jobs(limit=1).jobs
        assert [(one.model, one.scale, one.end) for one in job.request.controls] == [("edges", 0.8, 0.6)]
        assert job.request.inputs["controls.0.image"].size == len(png(200))
        assert [one.scale for one in job.request.image_prompts] == [0.6]
        visit.keep("control")
        page.get_by_role("button", name="Cancel").click()
        line.get_by_role("button", name="Remove").click()
        expect(add).to_be_focused()

        given = {"class_label": 1, "controls": [{"model": "edges", "image": encoded_picture(png(9)), "scale": 2}]}
        request = resolve(GenerateRequest.model_validate(given), card, seed=5)
        own = png_bytes(Image.new("L", (28, 28)), request, 0, card)
        files = page.locator("[data-field=init_image] input[type=file]")
        files.set_input_files({"name": "own.png", "mimeType": "image/png", "buffer": own})
        expect(page.locator(".remark")).to_contain_text("give again that of the control edges")
        expect(line.get_by_label("Scale", exact=True)).to_have_value("2")
        visit.close()
    finally:
        gateway.stop()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nobody_is_shut_out_and_a_phone_is_wide_enough(browser: Browser, server_url: str, theme: str) -> None:
    visit = Visit(browser, server_url, viewport=PHONE, color_scheme=theme)
    for view in VIEWS:
        page = visit.open(view)
        page.wait_for_load_state("networkidle")
        assert not visit.is_too_wide(), view
        visit.keep(f"phone-{theme}-{view}")
    visit.close()


def test_a_server_that_is_away_is_told_until_it_is_back(visit: Visit) -> None:
    page = visit.open()
    choose(page, "bag", steps=2)
    visit.context.set_offline(True)
    page.get_by_role("button", name="Draw").click()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("The server is away.")
    visit.keep("away")
    visit.context.set_offline(False)
    expect(banner).to_be_hidden()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    expect(page.get_by_role("radio", name="bag")).to_be_checked()


def test_it_works_behind_a_path_prefix(browser: Browser, server_url: str) -> None:
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {**self.headers, "X-Forwarded-Prefix": "/art"}
            url = server_url + self.path.removeprefix("/art")
            with httpx.stream(self.command, url, headers=headers, content=body, timeout=60) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "date"):
                        self.send_header(name, value)
                self.end_headers()
                for part in answer.iter_raw():
                    self.wfile.write(part)
                    self.wfile.flush()

        do_GET = do_POST = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    with serving(Proxy) as proxy:
        visit = Visit(browser, f"{proxy}/art")
        page = visit.open()
        choose(page, "bag", steps=2)
        expect(page.get_by_role("tabpanel")).to_contain_text(f"{proxy}/art/generate")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_alt_text("bag, picture 1 of 1")).to_have_attribute("src", re.compile("/art/jobs/"))
        visit.page.close()
        visit.close()
    assert asked
    assert all(path.startswith("/art/") for path in asked)


def test_a_key_is_asked_for_and_kept_for_the_session(
    browser: Browser, store_settings: StoreSettings, card: ModelCard
) -> None:
    with ThreadPoolExecutor(1) as pool:  # it runs an event loop, and the browser has one in this thread
        gateway = pool.submit(Gateway, store_settings, card).result()
    gateway.start()
    try:
        visit = Visit(browser, gateway.url)
        page = visit.page
        page.goto(gateway.url)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("requires an API key")
        dialog.get_by_label("API key").fill(gateway.token)
        dialog.get_by_role("button", name="Use").click()
        expect(page.get_by_role("radio", name="trouser")).to_be_visible()
        expect(page.get_by_role("tabpanel")).to_contain_text("Authorization: Bearer $CYNOSURE_API_KEY")
        page.reload()
        expect(page.get_by_role("radio", name="trouser")).to_be_visible()
        visit.close()
    finally:
        gateway.stop()


def test_the_root_is_a_page_or_json_and_its_files_are_open(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway(auth="required", public_url="https://img.example.org/draw")
    answer = gateway.get("/", headers={"Accept": "application/json"}).json()
    assert (answer["name"], answer["version"]) == ("Cynosure", __version__)
    assert answer["links"]["models"] == "https://img.example.org/draw/models"
    assert gateway.get("/").json() == answer
    page = gateway.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert gateway.get("/", headers={"Accept": "image/png"}).status_code == 406
    paths = re.findall(r'(?:src|href)="(studio/[^"]+)"', page.text)
    assert len(paths) >= 5
    for path in paths:
        file = gateway.get(f"/{path}")
        assert file.status_code == 200, path
        again = gateway.get(f"/{path}", headers={"If-None-Match": file.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")
    assert gateway.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert gateway.get("/studio/nothing.js").json()["code"] == "not_found"
    assert gateway.get("/studio/%2e%2e/routes.py").status_code == 404
