"""The images, built and used as a stranger would: `make test-container`.

BASE_IMAGE takes the place of the images' Ubuntu. Without a Docker engine all of this is skipped.
"""
