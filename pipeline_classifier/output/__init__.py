"""What a search writes: lists, pictures, the HTML report."""
