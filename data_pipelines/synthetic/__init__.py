"""Synthetic patients: eyes with diseases, drawn as fundus photographs, angiograms and OCT scans, with reports.

sources      Patients, Visits, Eyes and Drawn: the sources
tables       synthetic visits on disk, as a newcomer's own tables would look
patients     conditions, biomarkers and the course of a disease
anatomy      vessels, disc and fovea of an eye
lesions      where the lesions of each condition lie
reports      reports and captions
render       draws an eye in a modality, with landmarks and masks
fundus, angiogram, oct    the drawing of each modality
camera       illumination, blur, sensor noise and JPEG
raster       drawing of ellipses and lines in degrees of the retina
noise        noise tiles and random streams that are the same on every processor
"""
