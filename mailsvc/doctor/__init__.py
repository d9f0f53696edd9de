"""What is right and wrong with a service, looked at from outside: ``mailsvc doctor``."""
