"""A guest book: the front page counts its visits and shows the newest entries."""
from django.db.models import F
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST, require_safe

from visits.models import Entry, Visits


@require_safe
def front(request):
    Visits.objects.filter(page="/").update(count=F("count") + 1)
    return render(request, "front.html", {
        "visits": Visits.objects.get(page="/").count,
        "entries": Entry.objects.order_by("-id")[:10],
        "total": Entry.objects.count(),
    })


@require_POST
def add(request):
    """One entry. With a key (header or form field) a repeated request finds its entry already written."""
    key = request.headers.get("Idempotency-Key") or request.POST.get("idempotency_key") or None
    body = request.POST.get("body", "")
    if key is None:
        Entry.objects.create(body=body)
        return HttpResponse("added\n", content_type="text/plain", status=201)
    _, new = Entry.objects.get_or_create(idempotency_key=key, defaults={"body": body})
    return HttpResponse("added\n" if new else "already there\n", content_type="text/plain", status=201 if new else 200)


@require_GET
def count(request):
    return HttpResponse(f"{Entry.objects.count()}\n", content_type="text/plain")


@require_GET
def ready(request):
    """Ready means: the database answers, with what the front page needs."""
    Visits.objects.get(page="/")
    return HttpResponse("ready\n", content_type="text/plain")
