"""Reading files safely: addresses such as gs://bucket/labels.csv, JSON and pickles.

storage       local copies of files at addresses, and uploads
json_files    JSON files that are checked against a declared type
pickles       pickles that may hold plain values only
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.files import json_files, pickles, storage
