/* What OpenSMTPD 6.8 lacks to be a TLS server with OpenSSL 3, for LD_PRELOAD.

   It notes in a certificate's RSA key which private key its other process signs with.  OpenSSL 3
   hands out a copy (OpenSMTPD issue 1171), so that the note is lost and every handshake fails; put
   back in its place, the copy is the key. */

#define _GNU_SOURCE
#include <dlfcn.h>

typedef struct evp_pkey_st EVP_PKEY;
typedef struct rsa_st RSA;

int EVP_PKEY_set1_RSA(EVP_PKEY *key, RSA *rsa);

RSA *EVP_PKEY_get1_RSA(EVP_PKEY *key)
{
    RSA *(*real)(EVP_PKEY *) = (RSA *(*)(EVP_PKEY *))dlsym(RTLD_NEXT, "EVP_PKEY_get1_RSA");
    RSA *rsa = real(key);

    if (rsa)
        EVP_PKEY_set1_RSA(key, rsa);
    return rsa;
}
