import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import threadpool_info

from head2toe.solvers.threads import side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def of_a_new_thread():
    """What torch would share its work among there: a thread that has multiplied before does not see it change."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(torch.get_num_threads).result()


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_algebra_stays_in_its_thread_and_is_as_before_afterwards(two_threads):
    before = blas_threads()

    def algebra(_):
        return threading.get_ident(), torch.get_num_threads(), blas_threads()

    with side_by_side() as threads:
        seen = list(threads.map(algebra, range(8)))
    assert threading.get_ident() not in {thread for thread, _, _ in seen}
    assert {of_torch for _, of_torch, _ in seen} == {1}
    assert all(set(of_blas) == {1} for _, _, of_blas in seen)
    assert torch.get_num_threads() == of_a_new_thread() == 2
    assert blas_threads() == before


def test_an_error_in_a_job_comes_out_and_leaves_the_threads_as_they_were(two_threads):
    def fails(_):
        raise ValueError("the job's own")

    with pytest.raises(ValueError, match="the job's own"), side_by_side() as threads:
        list(threads.map(fails, range(2)))
    assert torch.get_num_threads() == of_a_new_thread() == 2


def test_an_error_cancels_what_has_not_begun():
    begun: list[int] = []
    hold = threading.Event()

    def job(number: int) -> None:
        begun.append(number)
        hold.wait(10)

    def fail() -> None:
        with side_by_side() as threads:
            for number in range(100):
                threads.submit(job, number)
            hold.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(begun) < 100
