"""What is asked about an image, and how much its visual tokens have to do with that."""
