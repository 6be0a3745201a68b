#include "wire/openssl.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>

namespace yado::wire {
namespace {

BioHandle reader(const std::string& text) {
  return BioHandle(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string contents(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

}  // namespace

std::unexpected<Error> fail_openssl(std::string_view doing) {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return fail(Errc::corrupt, "{}: {}", doing, reason == nullptr ? "OpenSSL gives no reason" : reason);
}

Result<CertificateHandle> parse_certificate(const std::string& pem) {
  CertificateHandle certificate(PEM_read_bio_X509(reader(pem).get(), nullptr, nullptr, nullptr));
  if (!certificate) return fail_openssl("not a PEM certificate");
  return certificate;
}

Result<KeyHandle> parse_key(const std::string& pem) {
  // Without a callback an encrypted key would make OpenSSL ask on the terminal.
  const auto no_password = [](char*, int, int, void*) { return 0; };
  KeyHandle key(PEM_read_bio_PrivateKey(reader(pem).get(), nullptr, no_password, nullptr));
  if (!key) return fail_openssl("not a PEM private key");
  return key;
}

Result<std::string> to_pem(X509& certificate) {
  const BioHandle bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), &certificate) != 1) return fail_openssl("write a certificate");
  return contents(bio.get());
}

Result<std::string> to_pem(EVP_PKEY& key) {
  const BioHandle bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_PrivateKey(bio.get(), &key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return fail_openssl("write a private key");
  return contents(bio.get());
}

Status check_pair(const std::string& certificate, const std::string& key) {
  YADO_ASSIGN(auto parsed_certificate, parse_certificate(certificate), "certificate");
  YADO_ASSIGN(auto parsed_key, parse_key(key), "private key");
  if (X509_check_private_key(parsed_certificate.get(), parsed_key.get()) != 1)
    return fail_openssl("the private key does not belong to the certificate");
  return {};
}

}  // namespace yado::wire
