"""The tests of mailsvc; docs/testing.rst tells what is where."""
