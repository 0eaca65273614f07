"""Images and boxes in, finds out: files and plain arrays, knowing nothing of how things are found."""
