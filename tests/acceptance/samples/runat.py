import time

from dtimer import RunAt

with RunAt(redis="embedded:") as queue:
    now = time.time() * 1000
    queue.write({"runAt": now + 1560, "key": "last"})
    queue.write({"runAt": now + 1409, "key": "middle"})
    queue.write({"runAt": now + 1333, "key": "first"})

    for key in queue:
        print(key)
        if key == "last":
            queue.stop()
