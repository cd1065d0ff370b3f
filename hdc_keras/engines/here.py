"""The engine without a cluster: parts run in this process, and in every other one that runs the same command."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from threading import Event

from hdc_keras.engines.work import POLL_S, Content, Work


class Here:
    """Runs one part at a time in the calling thread, or several at once in threads. See `Engine`."""

    def run(
        self,
        work: Work[Content],
        parts: Mapping[int, Content],
        at_once: int | None,
        report: Callable[[int, int, int], None],
        finished: Callable[[int], None] = lambda number: None,
    ) -> None:
        """See `Engine.run`. One part at a time if `at_once` is `None`."""
        if not parts:
            return
        waiting = deque(parts)
        stopped = Event()
        # Threads are joined after the work is closed, which, after an error, stops the parts that are in progress.
        with ThreadPoolExecutor(at_once or 1) as threads, work.open() as run_part:

            def run_waiting() -> None:
                blocked = 0
                while waiting and not stopped.is_set():
                    try:
                        number = waiting.popleft()
                    except IndexError:  # another thread was faster
                        return
                    if run_part(number, parts[number], partial(report, number)):
                        finished(number)
                        blocked = 0
                        continue
                    waiting.append(number)
                    blocked += 1
                    if blocked >= len(waiting):
                        time.sleep(POLL_S)
                        blocked = 0

            try:
                if at_once in (None, 1):
                    run_waiting()
                else:
                    running = [threads.submit(run_waiting) for _ in range(at_once)]
                    for ended in wait(running, return_when=FIRST_EXCEPTION).done:
                        ended.result()
            finally:
                stopped.set()
