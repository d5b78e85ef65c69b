"""Batches of numpy arrays from sources and steps.

streams        train, mix and one_epoch: streams of batches, read by Grain
order          the order of the examples, a function of seed and position
collate        stack examples to a batch
packing        batches of visits with different numbers of images and texts
workers        worker processes and their options
bad_records    skip and record images that cannot be read
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.pipeline import bad_records, collate, order, packing, streams, workers
    from data_pipelines.pipeline.streams import Data, Part, mix, one_epoch, train
