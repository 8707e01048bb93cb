"""Reads an interval log with the Python implementation of HdrHistogram and holds it against the report of the same run.

    hdr_log.py LOG REPORT

Ends with 1 if a count or a percentile differs by more than the three digits that both keep.
"""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "p99_9": 99.9, "max": 100}


def main(log_path, report_path):
    with open(report_path, encoding="utf-8") as file:
        report = json.load(file)
    whole = HdrHistogram(1, 3_600_000_000, 3)
    reader = HistogramLogReader(log_path, whole)
    intervals = 0
    while reader.add_next_interval_histogram(whole) is not None:
        intervals += 1
    reader.close()
    wrong = []
    if intervals < 2:
        wrong.append(f"{intervals} intervals in {log_path}: expected one a second")
    if whole.get_total_count() != report["measured_records"]:
        wrong.append(f"{whole.get_total_count()} values, and {report['measured_records']} records measured")
    for name, percentile in QUANTILES.items():
        here, there = report["latency_us"][name], whole.get_value_at_percentile(percentile)
        print(f"{name}: {here} us, elsewhere {there} us")
        if abs(here - there) > max(1, here * 0.002):
            wrong.append(f"{name} is {here} us here and {there} us elsewhere")
    print("\n".join(wrong) or f"{intervals} intervals, {whole.get_total_count()} values: the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
