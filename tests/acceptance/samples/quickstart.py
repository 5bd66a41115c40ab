from threading import Event

from dtimer import DTimer

done = Event()
dt = DTimer("node-1", "embedded:")


@dt.on("event")
def handle(events):
    for ev in events:
        print(f"{ev['msg']}, attempt {ev.attempt}")
    done.set()


@dt.on("error")
def failed(err):
    print("failed:", err)


with dt:  # join, and at the end leave
    dt.post({"msg": "hello"}, 200)
    done.wait(10)
