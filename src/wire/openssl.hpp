#pragma once
// OpenSSL's handles as values that free themselves, its PEM texts, and its error queue as an Error.

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace yado::wire {

template <auto free_function>
struct FreeBy {
  template <class T>
  void operator()(T* handle) const {
    free_function(handle);
  }
};
using BioHandle = std::unique_ptr<BIO, FreeBy<BIO_free_all>>;
using KeyHandle = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;
using CertificateHandle = std::unique_ptr<X509, FreeBy<X509_free>>;

/// What OpenSSL's error queue says, which is empty afterwards.
std::unexpected<Error> fail_openssl(std::string_view doing);

Result<CertificateHandle> parse_certificate(const std::string& pem);
Result<KeyHandle> parse_key(const std::string& pem);
Result<std::string> to_pem(X509& certificate);
Result<std::string> to_pem(EVP_PKEY& key);
/// Both parse, and the key is the certificate's.
Status check_pair(const std::string& certificate, const std::string& key);

}  // namespace yado::wire
