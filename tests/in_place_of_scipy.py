"""A pytest plugin: our filters and convolutions in the place of SciPy's, and which of SciPy's tests call them."""

from __future__ import annotations

import functools
import importlib
import json
import os

import pytest
import scipy.ndimage
import scipy.signal

from wherever import ndimage, signal

_called = False
_report: dict[str, str] = {}


def _noticed(function):
    @functools.wraps(function)
    def noticing(*arguments, **keywords):
        global _called
        _called = True
        return function(*arguments, **keywords)

    return noticing


def _replace():
    try:  # SciPy's list of what its functions can do, which its tests consult
        capabilities = importlib.import_module("scipy._lib._array_api").xp_capabilities_table
    except (ImportError, AttributeError):
        capabilities = {}
    for ours, theirs in ((ndimage, scipy.ndimage), (signal, scipy.signal)):
        for name in ours.__all__:
            original, noticing = getattr(theirs, name), _noticed(getattr(ours, name))
            if original in capabilities:
                capabilities[noticing] = capabilities[original]
            setattr(theirs, name, noticing)


_replace()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    global _called
    if call.when == "setup":
        _called = False
    report = yield
    if call.when == "call":
        outcome = "error" if report.failed and not _called else report.outcome
        if _called or outcome == "error":
            name = item.nodeid.split("::", 1)[1]
            text = str(report.longrepr).strip().splitlines()[-1] if report.failed else ""
            _report[name] = f"{outcome} {text}".strip()
    return report


def pytest_sessionfinish():
    with open(os.environ["WHEREVER_REPORT"], "w") as file:
        json.dump(_report, file)
