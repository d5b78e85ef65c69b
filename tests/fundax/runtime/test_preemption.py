import os
import signal
import threading

import pytest

from fundax.runtime.preemption import Preemption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_is_noted_and_the_handler_put_back(number, code):
    before = signal.getsignal(number)
    with Preemption() as interrupt:
        assert not interrupt.agreed(1, 10) and interrupt.exit_code == 0
        os.kill(os.getpid(), number)
        assert interrupt.agreed(1, 10) and interrupt.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    with Preemption(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_changes():
    before, found = signal.getsignal(signal.SIGINT), []

    def inside():
        with Preemption() as interrupt:
            found.append((signal.getsignal(signal.SIGINT), interrupt.agreed(1, 1)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [(before, False)]
