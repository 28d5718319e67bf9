"""What every other package of the relay may import, and that imports none of them."""
