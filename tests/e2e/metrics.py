"""Checks of millpond's metrics with Prometheus' own parsers and with a Prometheus.

    metrics.py compare MIRROR DEBUG REPOSITORY DIGEST
        sends requests, and compares what the metrics say with what was done
    metrics.py panels MIRROR PROMETHEUS REPOSITORY DIGEST DASHBOARD
        sends requests while PROMETHEUS scrapes, then evaluates every query of the dashboard

DIGEST is a blob that is cached.
"""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPEN = "application/openmetrics-text; version=1.0.0"
# What only a listener with TLS has.
MAY_BE_EMPTY = {"Certificate"}


def fetch(url, accept="*/*", headers=()):
    request = urllib.request.Request(url, headers={"Accept": accept, **dict(headers)})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def samples(debug, accept, parse, content_type):
    status, headers, body = fetch(f"{debug}/metrics", accept)
    assert status == 200, status
    assert headers["Content-Type"].startswith(content_type), headers["Content-Type"]
    families = list(parse(body.decode()))
    assert all(family.type != "unknown" for family in families), families
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def total(found, name, **labels):
    wanted = set(labels.items())
    return sum(value for (known, its), value in found.items() if known == name and wanted <= set(its))


def traffic(mirror, repository, digest):
    """Sends requests. Returns what the metrics should count of them."""
    counted = {}

    def add(by, name, **labels):
        key = (f"millpond_{name}", tuple(sorted(labels.items())))
        counted[key] = counted.get(key, 0) + by

    def get(path, route, result, status, headers=()):
        answered, _, body = fetch(f"{mirror}/{path}", headers=headers)
        assert answered == status, (path, answered)
        add(1, "requests_total", route=route, status=str(status), result=result)
        add(1, "request_duration_seconds_count", route=route, result=result)
        add(1, "request_first_byte_seconds_count", route=route, result=result)
        add(len(body), "client_sent_bytes_total", route=route, result=result)
        if result == "hit" and route == "blob":
            add(len(body), "saved_bytes_total", route=route)

    for _ in range(5):
        get(f"v2/{repository}/blobs/{digest}", "blob", "hit", 200)
    for _ in range(3):
        get(f"v2/{repository}/blobs/{digest}", "blob", "hit", 206, {"Range": "bytes=7-99"}.items())
    for _ in range(2):
        get("v2/", "base", "hit", 200)
    get(f"v2/{repository}/manifests/no-such-tag", "manifest", "error", 404)
    get("nothing", "other", "error", 404)
    add(1, "upstream_errors_total", error="not_found")
    return counted


def compare(mirror, debug, repository, digest):
    read_text = lambda: samples(debug, "*/*", parse_text, "text/plain; version=0.0.4")
    before = read_text()
    counted = traffic(mirror, repository, digest)
    deadline = time.monotonic() + 10
    while True:
        after = read_text()
        wrong = [
            (name, labels, total(after, name, **dict(labels)) - total(before, name, **dict(labels)), by)
            for (name, labels), by in counted.items()
            if total(after, name, **dict(labels)) - total(before, name, **dict(labels)) != by
        ]
        # A request is counted after its answer has been sent.
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert not wrong, "\n".join(f"{name} {labels}: {found}, but {by}" for name, labels, found, by in wrong)
    opened = samples(debug, OPEN, parse_open, "application/openmetrics-text; version=1.0.0")
    lost = set(after) - set(opened)
    assert not lost, f"OpenMetrics lacks {lost}"
    for name, labels in after:
        for label, value in labels:
            hides = ("sha256:", "no-such-tag", repository)
            assert not any(word in value for word in hides), (name, label, value)
    bytes_in = total(after, "millpond_upstream_received_bytes_total", kind="blob")
    assert bytes_in > 0 and total(after, "millpond_cache_bytes") >= bytes_in
    assert total(after, "millpond_store_free_bytes") > 0
    phases = [total(after, "millpond_upstream_phase_duration_seconds_count", phase=phase)
              for phase in ("connect", "first_byte", "whole")]
    assert all(phases), phases
    assert total(after, "millpond_upstream_token_fetches_total", result="granted") > 0
    print(f"{len(after)} samples")


def query(prometheus, text):
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": text})
    status, _, body = fetch(url)
    answer = json.loads(body)
    assert status == 200 and answer["status"] == "success", (text, answer)
    return answer["data"]["result"]


def queries(panels):
    for panel in panels:
        yield from queries(panel.get("panels", []))
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def panels(mirror, prometheus, repository, digest, dashboard):
    deadline = time.monotonic() + 30
    while True:
        try:
            if query(prometheus, 'up{job="millpond"} == 1'):
                break
        except (OSError, AssertionError, ValueError):
            pass
        assert time.monotonic() < deadline, "Prometheus doesn't scrape"
        time.sleep(0.2)
    with open(dashboard, encoding="utf-8") as file:
        wanted = list(queries(json.load(file)["panels"]))
    assert len(wanted) > 40, len(wanted)
    substitutes = {"$__rate_interval": "10s", "$instance": ".*"}
    deadline = time.monotonic() + 30
    while True:
        traffic(mirror, repository, digest)
        empty = []
        for title, text in wanted:
            for name, value in substitutes.items():
                text = text.replace(name, value)
            if not query(prometheus, text) and title not in MAY_BE_EMPTY:
                empty.append(f"{title}: {text}")
        if not empty or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert not empty, "no data:\n" + "\n".join(empty)
    print(f"{len(wanted)} queries")


COMMANDS = {"compare": compare, "panels": panels}
COMMANDS[sys.argv[1]](*sys.argv[2:])
