#!/usr/bin/env python3
"""openvpn-monitor as it comes from PyPI, asked for its page without a browser.

    monitor.py CONFIG

For each line of standard input it asks the application for its page once, as a browser
would, and prints one line of JSON: what the application gave its template, by the
sections of CONFIG. It ends with an error when there is no page, or the page says that
a daemon could not be reached.
"""

import json
import os
import sys

os.environ["OPENVPNMONITOR_CONFIG_FILE"] = sys.argv[1]

from flask import template_rendered  # noqa: E402
from openvpn_monitor.app import application  # noqa: E402

# What it found out in a round, as opposed to what it was configured with.
FOUND = ("release", "version", "state", "stats", "sessions")


def main():
    rendered = []

    def keep(_, template, context, **__):
        if template.name == "base.html":
            rendered.append(dict(context["vpns"]))

    template_rendered.connect(keep, application)
    browser = application.test_client()
    for _ in sys.stdin:
        page = browser.get("/")
        text = page.get_data(as_text=True)
        if page.status_code != 200 or "Could not connect" in text:
            sys.exit(f"openvpn-monitor: {page.status}\n{text}")
        vpns = rendered.pop()
        found = {name: {key: vpn[key] for key in FOUND} for name, vpn in vpns.items()}
        print(json.dumps(found, default=str), flush=True)
        # It keeps these from page to page: the next one has to find them out again.
        for vpn in vpns.values():
            for key in FOUND:
                del vpn[key]


if __name__ == "__main__":
    main()
