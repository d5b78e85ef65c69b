import pickle

import numpy as np

from data_pipelines.records import Record, View
from data_pipelines.sources.cached import CachedSource


class Counted:
    classes = ("a", "b")
    made = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not 0 <= index < 3:
            raise IndexError(index)
        type(self).made += 1
        return Record(str(index), (View(np.zeros((2, 2, 3), np.uint8)),))


def test_a_row_is_made_once_and_a_pickled_copy_starts_empty():
    rows = CachedSource(Counted())
    assert rows[1] is rows[1] and Counted.made == 1
    assert len(rows) == 3 and rows.classes == ("a", "b")
    copy = pickle.loads(pickle.dumps(rows))
    assert copy[1].patient == "1" and Counted.made == 2
