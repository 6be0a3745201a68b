"""Settings of the example site; everything that differs between places comes from the environment."""
import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only-an-example")
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
INSTALLED_APPS = ["visits"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("DATABASE_HOST", "127.0.0.1"),
        "PORT": os.environ.get("DATABASE_PORT", "5432"),
        "NAME": os.environ.get("DATABASE_NAME", "yado"),
        "USER": os.environ.get("DATABASE_USER", "yado"),
        "PASSWORD": os.environ.get("DATABASE_PASSWORD", ""),
        # One connection per request (Django's default): a connection that was open when an image was taken is
        # dead in every copy restored from it, and this Django does not test connections before use.
        "CONN_MAX_AGE": 0,
        "OPTIONS": {"connect_timeout": 5},
    }
}
