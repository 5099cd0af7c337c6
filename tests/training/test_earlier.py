import json

import pytest

from training.earlier import EarlierTask, backward_transfer, describe, forgetting, to_csv

TASKS = [
    EarlierTask('a', history=(90.0, 95.0, 80.0), after=70.0, images=10),
    EarlierTask('b', 'map', history=(50.0,), after=55.0, images=20),
    EarlierTask('c', history=(None, 60.0), after=None, remark='not measured: gone'),
    EarlierTask('d', history=(None,), after=40.0),
]


def test_figures_are_those_of_the_literature() -> None:
    # Lopez-Paz and Ranzato: from right after learning; Chaudhry et al.: from the best that it ever was.
    assert backward_transfer(TASKS) == (-20.0 + 5.0) / 2
    assert forgetting(TASKS) == (25.0 - 5.0) / 2
    assert [task.change for task in TASKS] == [-10.0, 5.0, None, None]


def test_nothing_known_is_no_figure() -> None:
    assert backward_transfer(TASKS[2:]) is None
    assert forgetting(TASKS[2:]) is None
    assert 'backward' not in describe(TASKS[2:])


def test_what_run_json_records_is_read_again() -> None:
    assert [EarlierTask.from_dict(json.loads(json.dumps(task.to_dict()))) for task in TASKS] == TASKS


def test_the_table_says_what_was_not_measured() -> None:
    lines = to_csv(TASKS).splitlines()
    assert lines[0] == 'task,measure,learnt,before,after,change,images,remark'
    assert lines[1] == 'a,top1,90.0,80.0,70.0,-10.0,10,'
    assert lines[3] == 'c,top1,,60.0,,,,not measured: gone'
    assert describe(TASKS).splitlines()[3].endswith('60.00 %        -        -  not measured: gone')


@pytest.mark.parametrize('task', TASKS)
def test_one_task_has_one_line(task: EarlierTask) -> None:
    assert describe([task]).splitlines()[1].startswith(f'{task.head}, ')
