"""Steps that turn a record into an example of numpy arrays.

views         first steps: one view or both eyes of a visit, with text and targets
steps         resize, augmentation, flips that keep sides correct, tokenization, field-of-view crop
dense         images with masks or landmarks
flair         FLAIR's captions, padding and augmentation
multi_crop    iBOT's global and local crops with patch masks
word_masks    whole-word masking for masked-language pretraining
"""
