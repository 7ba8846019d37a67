"""Template images: built once, booted by every qube made from them."""
