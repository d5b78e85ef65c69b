"""Sources of records: tables, folders, shards and LMDB, and how they are split.

csv                 csv_source: a CSV file
folders             image_folder: one folder for each class
wrap                any Python object with a length and items
csv_table           the CSV reader and the table it builds
columns             compact, memory-mapped columns of a large index
shards              ArrayRecord shards written by `launch.py data convert`
splits              subsets and patient-wise splits
flair               FLAIR's data frames and MM-Retinal's captions
ret_clip            RET-CLIP's pairs of eyes with a report
modality_folders    VisionFM's folders by modality, and its normalisation
texts               texts without images
cached              keeps the records of a small source in memory
"""
