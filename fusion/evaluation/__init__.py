"""From a run to its figures and answers; the only room that opens the test part."""
