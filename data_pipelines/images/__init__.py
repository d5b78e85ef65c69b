"""Image files: to RGB pixels, and to the class numbers of a mask.

decode        load: a file, bytes, an array or a Pillow image as u8 [H W 3]; ReadOptions
masks         load_mask: class numbers of a mask; values=0:cup,128:disc
jpeg          JPEG by libjpeg-turbo, and what it says of damage; EXIF orientation
depth         greyscale and colour of more than eight bits
"""
