"""Sources of records: tables, folders, shards and LMDB, and how they are split.

csv                 csv_source: a table with one image per row
folders             image_folder: one folder for each class
wrap                any Python object with a length and items
tables              the one reader of tables: CSV, Excel, Parquet
labels              the one rule for labels
header              columns by name, templates over columns, and what a table is read as
visits              dates, and patients from the names of files
csv_table           the compact table behind csv_source
columns             compact, memory-mapped columns of a large index
shards              ArrayRecord shards written by `launch.py data convert`
splits              subsets and patient-wise splits
flair               FLAIR's data frames and MM-Retinal's captions
ret_clip            RET-CLIP's pairs of eyes with a report
modality_folders    VisionFM's folders by modality, and its normalisation
texts               texts without images
cached              keeps the records of a small source in memory
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.sources.cached import CachedSource
    from data_pipelines.sources.splits import split_by
