#!/usr/bin/env python3
"""What checkpoint and restore of a VM whose memory lies on several hosts take, from rates per host. docs/scale.md explains it.

    bench/scale.py                                  the tables of docs/scale.md: 240 GB and 24 TB over 16 hosts
    bench/scale.py --memory 1e12 --hosts 8 --disk 2e9 --link 25e9
    bench/scale.py --check bench/results/split-vm.json   the model beside what was measured

Bytes are decimal here (GB = 1e9), as disks and links are sold; rates in bytes/s, links in bit/s.
"""
import argparse
import json
import re
import sys
from dataclasses import dataclass

PAGE = 4096
GIB = 1 << 30
MIB = 1 << 20
PAYLOAD = 0.941  # of a link: TCP's share of an Ethernet frame with time stamps, 1448 of 1538 bytes


@dataclass(frozen=True)
class Rates:
    """Of one host. Defaults were measured where the project is developed (platform.md of the project, docs/formats/pages.md)."""
    disk: float                    # bytes/s, the same for reading and writing
    link_bits: float               # bit/s each way
    fault_s: float = 41e-6         # a page-in through a page server without the bytes' own time
    scan_s_per_gib: float = 3e-3   # finding written pages, one thread (0.5 to 7 ms)
    fixed_pause_s: float = 20e-3   # stop, device state, continue (15 to 21 ms)
    copy: float = 2e9              # bytes/s from memory to memory, one thread

    @property
    def link(self):
        return self.link_bits / 8 * PAYLOAD


def split_stopped(shares, rates):
    """Every host writes its own share: the slowest one's time."""
    return max(shares) / rates.disk + rates.fixed_pause_s


def split_live(share, written, dirty, rates):
    """(seconds, bytes, pause) of one host. `written`: bytes the guest keeps writing again; `dirty`: bytes/s of them at most. What is written again and
    again is left out of the rounds, copied in memory around the cut, and written once (docs/adr/0014-hot-pages.md). Copies are repeated as long as each
    leaves a quarter less; what the last one leaves is copied while the guest stands still."""
    delta = written
    while True:
        following = min(written, dirty * delta / rates.copy)
        if following > delta * 3 / 4 or delta <= 64 * PAGE:
            break
        delta = following
    pause = rates.fixed_pause_s + share / GIB * rates.scan_s_per_gib + delta / rates.copy
    return share / rates.disk + pause, share, pause


def ordinary(memory, rates):
    """One host with all of it: one disk."""
    return memory / rates.disk


def conventional_split(memory, local, prefetch, rates):
    """The first host reads all memory in order, and writes it. A fault waits for its round trip and for its bytes; the disk works at the
    same time. Pages that make room go the other way."""
    remote = memory - local
    faults = remote / prefetch * (rates.fault_s + prefetch / rates.link)
    return max(memory / rates.disk, faults)


def bound(hosts, rates):
    """conventional_split over split_stopped with equal shares and any prefetch: disk or link, whichever is worse."""
    return max(hosts, (hosts - 1) * rates.disk / rates.link)


def second_domain(share, rates):
    """The copy that makes an image survive a host: every host sends its part to the next one, and writes the one it gets."""
    return max(share / rates.link, share / rates.disk)


def seconds(value):
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 7200 else f"{value / 3600:.1f} h"


def size(value):
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def print_table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def predict(memory, hosts, cases, written_part):
    share = memory / hosts
    written = share * written_part
    print(f"{size(memory)} over {hosts} hosts, {size(share)} each; live: {written_part:.0%} of it written again and again at 1 GB/s per host\n")
    rows = []
    for name, rates in cases:
        live, _, pause = split_live(share, written, 1e9, rates)
        stopped = split_stopped([share] * hosts, rates)
        rows.append([name, seconds(stopped), seconds(live), seconds(pause), seconds(second_domain(share, rates)), seconds(share / rates.disk),
                     seconds(ordinary(memory, rates)), seconds(conventional_split(memory, share, PAGE, rates)),
                     seconds(conventional_split(memory, share, 2 * MIB, rates)), f"{bound(hosts, rates):.0f}"])
    print_table(["each host", "checkpoint, stopped", "live", "its pause", "copy to a second host", "restore, all", "one host with one disk", "conventional on the split VM, 4 KiB", "2 MiB", "bound"], rows)
    pages = share / PAGE
    scans = [share / GIB * per_gib for per_gib in (0.5e-3, 7e-3)]
    print(f"Per host: {pages / 1e6:.1f} million pages; index on disk and in memory {size(pages * 12)}, memory while writing {size(pages * (16 + 13 + 12))};\n"
          f"finding written pages takes {seconds(scans[0])} to {seconds(scans[1])} with one thread.\n")


def check(file):
    """Measured checkpoints against bytes / (hosts that write x disk rate)."""
    rows = json.load(open(file, encoding="utf-8"))
    medians = {(row["case"], row["variant"], row["metric"]): row["median"] for row in rows}
    machine = rows[0]["machine"] if rows else "nothing"
    limit = re.search(r"disks limited to (\d+) MiB/s", machine)
    if not limit:
        sys.exit(f"scale: {file}: of no use, because its machine should name the limit of disks, and is: {machine}")
    disk = float(limit[1])
    table = []
    for (case, variant, metric), measured in medians.items():
        if metric != "checkpoint_s":
            continue
        split = re.search(r"(\d+) hosts", case)
        writers = int(split[1]) if split and variant.startswith("yado") else 1  # a conventional way writes on one host
        model = medians[case, variant, "bytes_disk"] / (writers * disk)
        table.append([case, variant, f"{medians[case, variant, 'bytes_disk']:.0f}", str(writers), f"{model:.2f}", f"{measured:.2f}", f"{measured / model:.2f}"])
    print_table(["case", "variant", "MiB on disks", "hosts that write", "model s", "measured s", "measured / model"], table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=float, action="append", help="bytes")
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--disk", type=float, help="bytes/s of every host")
    parser.add_argument("--link", type=float, default=10e9, help="bit/s of every host, with --disk")
    parser.add_argument("--written", type=float, default=0.1, help="part of the memory that is written again and again")
    parser.add_argument("--check", metavar="JSON", help="compare with results of ./run bench split-vm")
    options = parser.parse_args()
    if options.check:
        check(options.check)
        return
    if options.hosts < 1 or (options.disk is not None and options.disk <= 0) or options.link <= 0:
        sys.exit("scale: hosts, disk and link must be positive")
    cases = [("hard disk 150 MB/s, 1 Gbit/s", Rates(150e6, 1e9)), ("SATA SSD 500 MB/s, 10 Gbit/s", Rates(500e6, 10e9)),
             ("NVMe 3 GB/s, 25 Gbit/s", Rates(3e9, 25e9)), ("four NVMe 12 GB/s, 100 Gbit/s", Rates(12e9, 100e9))]
    if options.disk:
        cases = [(f"{options.disk / 1e6:.0f} MB/s, {options.link / 1e9:.3g} Gbit/s", Rates(options.disk, options.link))]
    for memory in options.memory or [240e9, 24e12]:
        predict(memory, options.hosts, cases, options.written)


if __name__ == "__main__":
    main()
