"""What psutil says of this host: one reading at once, one more for each line on stdin. Printed as JSON lines."""
import json
import sys

import psutil

PATHS = ["/", "/proc", "/dev/shm"]


def fields(reading, names):
    return {name: getattr(reading, name) for name in names}


def reading():
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    load = psutil.getloadavg()
    return {
        "cpu": {
            "percent": psutil.cpu_percent(),
            "count_physical": psutil.cpu_count(logical=False),
            "count_logical": psutil.cpu_count(),
            "load_avg_1m": load[0],
            "load_avg_5m": load[1],
            "load_avg_15m": load[2],
        },
        "memory": {
            **fields(memory, ["total", "available", "percent", "buffers", "cached"]),
            # As psutil 7.2 has it; Debian's is older.
            "used": memory.total - memory.available,
        },
        "swap": fields(swap, ["total", "used", "free", "percent"]),
        "disk_io": disk and {
            **fields(disk, ["read_count", "write_count", "read_bytes", "write_bytes"]),
            "read_time_ms": disk.read_time,
            "write_time_ms": disk.write_time,
        },
        "network_io": fields(network, ["bytes_sent", "bytes_recv", "packets_sent", "packets_recv",
                                       "errin", "errout", "dropin", "dropout"]),
        "disk_usage": {path: fields(psutil.disk_usage(path), ["total", "used", "free", "percent"]) for path in PATHS},
    }


print(json.dumps(reading()), flush=True)
for _ in sys.stdin:
    print(json.dumps(reading()), flush=True)
