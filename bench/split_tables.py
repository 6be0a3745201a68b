#!/usr/bin/env python3
"""The tables of docs/benchmarks.md about checkpoint and restore, from the rows that `./run bench split-vm` wrote.

    bench/split_tables.py bench/results/split-vm.json

A cell is the median of all rounds, and in brackets the smallest and the largest where they differ.
"""
import json
import re
import sys

FIGURES = [("checkpoint_s", "checkpoint s", 2), ("pause_ms", "pause ms", 0), ("bytes_disk", "MiB on disks", 0), ("bytes_wire", "on wires", 1),
           ("restore_run_s", "restore, runs s", 2), ("restore_all_s", "all s", 2), ("restore_gap_ms", "longest gap ms", 0)]


def cell(row, digits):
    if row is None:
        return "–"
    median, smallest, largest = (f"{row[key]:.{digits}f}" for key in ("median", "min", "max"))
    return median if smallest == largest else f"{median} ({smallest}–{largest})"


def way(case, variant):
    """`conventional-split` is measured once per size of prefetch, which its case names."""
    prefetch = re.search(r"prefetch (\d+ KiB)", case)
    return f"`{variant}`" + (f", {prefetch[1]}" if prefetch else "")


def key(case):
    """(load, hosts): what lines of one comparison have in common."""
    hosts = re.search(r"(\d+) hosts", case)
    return case.split(",")[0], int(hosts[1]) if hosts else 1


def print_table(head, lines):
    print("| " + " | ".join(head) + " |\n" + "|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = json.load(file)
    by = {(row["case"], row["variant"], row["metric"]): row for row in rows}
    measured = list(dict.fromkeys((row["case"], row["variant"]) for row in rows))
    loads = list(dict.fromkeys(key(case)[0] for case, _ in measured))
    measured.sort(key=lambda one: (loads.index(key(one[0])[0]), key(one[0])[1], one[1].startswith("yado")))

    print(f"{rows[0]['machine']}\n")
    print_table(["load", "hosts", "way"] + [name for _, name, _ in FIGURES],
                [[key(case)[0], str(key(case)[1]), way(case, variant)] + [cell(by.get((case, variant, metric)), digits) for metric, _, digits in FIGURES]
                 for case, variant in measured])

    for what, title, digits in (("checkpoint_times_as_fast_as", "checkpoint: times as fast as", 1), ("pause_times_as_short_as", "pause: times as short as", 0),
                                ("restore_run_times_as_fast_as", "restore until it runs: times as fast as", 1),
                                ("restore_all_times_as_fast_as", "restore until all is in: times as fast as", 1)):
        references = list(dict.fromkeys(row["metric"][len(what) + 1:] for row in rows if row["metric"].startswith(what)))
        print_table([title, "way"] + references,
                    [[f"{key(case)[0]}, {key(case)[1]} hosts", way(case, variant)] + [cell(by.get((case, variant, f"{what}_{one}")), digits) for one in references]
                     for case, variant in measured if variant.startswith("yado")])


if __name__ == "__main__":
    main()
