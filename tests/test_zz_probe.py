import logging, time, threading, msgspec
from test_worker import *
from streams import topics
def test_isr(settings, start, wait_for, caplog):
    caplog.set_level(logging.DEBUG)
    impatient = msgspec.structs.replace(settings, kafka={"message.timeout.ms": 500})
    worker = start(own=impatient)
    click(settings, "a")
    wait_for(lambda: worker.processed == 1)
    admin = clients.admin(settings)
    for f in admin.delete_topics([settings.prefix+"slates"]).values(): f.result()
    click(settings, "a", "b")
    end=time.monotonic()+8
    while time.monotonic()<end and worker.thread.is_alive(): time.sleep(.1)
    print(worker.task.batches, worker.error, worker._failed)
    for r in caplog.records[-60:]: print(r.created%1000, r.name, r.getMessage())
    import sys, traceback
    f=sys._current_frames().get(worker.thread.ident)
    if f: traceback.print_stack(f, file=sys.stdout)
    topics.apply(admin, settings)
    t=time.monotonic()
    wait_for(lambda: worker.processed==3)
    print(time.monotonic()-t)
    print(worker.task.batches, worker.error, worker._failed, said(settings))
    assert 0
