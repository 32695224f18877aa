"""The number of inputs that each test tried, in the summary."""

from tests.fuzz.harness import SECONDS


def pytest_terminal_summary(terminalreporter):
    if not SECONDS:
        return
    terminalreporter.section("inputs")
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            if name == "inputs":
                terminalreporter.line(f"{report.nodeid.partition('::')[2]}: {count}")
