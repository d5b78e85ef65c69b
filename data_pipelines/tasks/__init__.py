"""Data of whole tasks: labelled splits, follow-up visits, modality mixes, KeepFIT's expert set."""
