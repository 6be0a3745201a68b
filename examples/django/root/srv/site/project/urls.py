from django.urls import path

from visits import views

urlpatterns = [
    path("", views.front),
    path("add", views.add),
    path("count", views.count),
    path("ready", views.ready),
]
