from abc_toolkit.tasks import Parity, Task
from abc_toolkit.testing.discovery import import_all, left_out
from abc_toolkit.testing.task_contract import TaskContract


def test_every_task_has_a_contract_test() -> None:
    import_all("abc_toolkit.tasks")
    import_all("tests.tasks")
    assert left_out(Task, TaskContract, "abc_toolkit.", "task") == set()


def test_a_task_left_out_is_named() -> None:
    class Forgotten(Parity):
        pass

    class Uncollected(TaskContract):  # pytest collects classes by their name: this one does not count
        cases = {"it": Forgotten()}  # noqa: RUF012

    assert left_out(Task, TaskContract, __name__, "task") == {"Forgotten"}
    assert issubclass(Uncollected, TaskContract)
