"""The tables of examples/schema.sql; the database owns them, Django only reads and writes them."""
from django.db import models


class Visits(models.Model):
    page = models.TextField(primary_key=True)
    count = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "visits"


class Entry(models.Model):
    idempotency_key = models.TextField(unique=True, null=True)
    body = models.TextField()
    written = models.DateTimeField(auto_now_add=True)

    class Meta:
        managed = False
        db_table = "entries"
