# Generalised linear mixed models by lme4 and glmmTMB, mixtures by flexmix: Rscript tests/golden/make_glmm.R, from the root of a clone.
suppressPackageStartupMessages({library(lme4); library(glmmTMB); library(flexmix); library(jsonlite)})

sim <- read.csv("tests/golden/sim_responses.csv")
sim$failures <- sim$trials - sim$successes
sim$mixed_failures <- sim$trials - sim$mixed_successes
pbc <- read.csv("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25
pbc <- pbc[!is.na(pbc$hepato) & !is.na(pbc$spiders), ]
pbc$age10 <- (pbc$age - 50) / 10
data <- list(sim_responses = sim, pbcseq = pbc)

# name, data, family, formula of mixmoe, arguments of mixmoe, formula of the peer, nAGQ or family, and column of weights
models <- list(
  list("binary_intercept", "sim_responses", "binomial", "binary ~ time + x | re: (1 | id)", list(), binary ~ time + x + (1 | id), 1),
  list("binary_intercept_10", "sim_responses", "binomial", "binary ~ time + x | re: (1 | id)", list(n_quad = 10), binary ~ time + x + (1 | id), 10),
  list("successes_slope", "sim_responses", "binomial", "successes ~ time + x | re: (1 + time | id)", list(trials = "trials"),
       cbind(successes, failures) ~ time + x + (1 + time | id), 1),
  list("successes_10", "sim_responses", "binomial", "successes ~ time + x | re: (1 | id)", list(trials = "trials", n_quad = 10),
       cbind(successes, failures) ~ time + x + (1 | id), 10),
  list("count_slope", "sim_responses", "poisson", "count ~ time + x | re: (1 + time | id)", list(offset = "log_exposure"),
       count ~ time + x + offset(log_exposure) + (1 + time | id), 1),
  list("count_10", "sim_responses", "poisson", "count ~ time + x | re: (1 | id)", list(offset = "log_exposure", n_quad = 10),
       count ~ time + x + offset(log_exposure) + (1 | id), 10),
  list("pbc_hepato", "pbcseq", "binomial", "hepato ~ year + age10 | re: (1 + year | id)", list(), hepato ~ year + age10 + (1 + year | id), 1),
  list("pbc_spiders_10", "pbcseq", "binomial", "spiders ~ year + age10 | re: (1 | id)", list(n_quad = 10), spiders ~ year + age10 + (1 | id), 10),
  list("count_weighted", "sim_responses", "poisson", "count ~ time + x | re: (1 | id)", list(offset = "log_exposure", weights = "trials"),
       count ~ time + x + offset(log_exposure) + (1 | id), 1, "trials")
)
by_tmb <- list(
  list("binary_intercept", "sim_responses", "binomial", "binary ~ time + x | re: (1 | id)", list(), binary ~ time + x + (1 | id), binomial()),
  list("successes_slope", "sim_responses", "binomial", "successes ~ time + x | re: (1 + time | id)", list(trials = "trials"),
       cbind(successes, failures) ~ time + x + (1 + time | id), binomial()),
  list("count_slope", "sim_responses", "poisson", "count ~ time + x | re: (1 + time | id)", list(offset = "log_exposure"),
       count ~ time + x + offset(log_exposure) + (1 + time | id), poisson()),
  list("clumped", "sim_responses", "negbinomial", "clumped ~ time + x | re: (1 + time | id)", list(offset = "log_exposure"),
       clumped ~ time + x + offset(log_exposure) + (1 + time | id), nbinom2()),
  list("positive", "sim_responses", "gamma", "positive ~ time + x | re: (1 + time | id)", list(), positive ~ time + x + (1 + time | id), Gamma("log")),
  list("share", "sim_responses", "beta", "share ~ time + x | re: (1 + time | id)", list(), share ~ time + x + (1 + time | id), beta_family()),
  list("count_weighted", "sim_responses", "poisson", "count ~ time + x | re: (1 | id)", list(offset = "log_exposure", weights = "trials"),
       count ~ time + x + offset(log_exposure) + (1 | id), poisson(), "trials"),
  list("clumped_intercept", "sim_responses", "negativebinomial", "clumped ~ time + x | re: (1 | id)", list(), clumped ~ time + x + (1 | id), nbinom2()),
  list("positive_intercept", "sim_responses", "gamma", "positive ~ time + x | re: (1 | id)", list(), positive ~ time + x + (1 | id), Gamma("log")),
  list("share_double_bar", "sim_responses", "beta", "share ~ time + x | re: (1 + time || id)", list(), share ~ time + x + (1 + time || id), beta_family()),
  list("share_weighted", "sim_responses", "beta", "share ~ time + x | re: (1 | id)", list(weights = "trials"), share ~ time + x + (1 | id), beta_family(), "trials"),
  list("pbc_bili", "pbcseq", "gamma", "bili ~ year + age10 | re: (1 + year | id)", list(), bili ~ year + age10 + (1 + year | id), Gamma("log")),
  list("pbc_hepato", "pbcseq", "binomial", "hepato ~ year + age10 | re: (1 + year | id)", list(), hepato ~ year + age10 + (1 + year | id), binomial())
)

record <- function(case, peer, fit, beta, se, D, dispersion = NULL)
  list(name = case[[1]], peer = peer, data = case[[2]], family = case[[3]], formula = case[[4]], arguments = case[[5]],
       peer_formula = paste(deparse(case[[6]], width.cutoff = 500), collapse = ""), n = nobs(fit), loglik = as.numeric(logLik(fit)),
       beta = unname(beta), se = unname(se), D = D, dispersion = dispersion)

covariance <- function(blocks) as.matrix(Matrix::bdiag(lapply(blocks, function(v) matrix(as.numeric(v), nrow(v)))))

with_lme4 <- function(case) {
  control <- glmerControl(optimizer = "bobyqa", tolPwrss = 1e-12, optCtrl = list(rhoend = 1e-8, maxfun = 1e5))
  d <- data[[case[[2]]]]
  d$w <- if (length(case) > 7) d[[case[[8]]]] else 1
  fit <- glmer(case[[6]], data = d, family = case[[3]], nAGQ = case[[7]], weights = w, control = control)
  # with nAGQ > 1 lme4 gives the log-likelihood up to the constant of the responses
  out <- record(case, "lme4", fit, fixef(fit), sqrt(diag(as.matrix(vcov(fit, use.hessian = TRUE)))), covariance(VarCorr(fit)))
  out$relative <- case[[7]] > 1
  out
}

with_tmb <- function(case) {
  control <- glmmTMBControl(optCtrl = list(rel.tol = 1e-14, iter.max = 2000, eval.max = 4000))
  d <- data[[case[[2]]]]
  d$w <- if (length(case) > 7) d[[case[[8]]]] else 1
  fit <- glmmTMB(case[[6]], data = d, family = case[[7]], weights = w, control = control)
  out <- record(case, "glmmTMB", fit, fixef(fit)$cond, sqrt(diag(vcov(fit)$cond)), covariance(VarCorr(fit)$cond), sigma(fit))
  out$relative <- FALSE
  out
}

# name, family, formula of mixmoe, arguments, formula and model of flexmix
mixtures <- list(
  list("mixture_binary", "binomial", "mixed_binary ~ time + x | gate: z | re: (0 | id)", list(),
       cbind(mixed_binary, 1 - mixed_binary) ~ time + x | id, "binomial"),
  list("mixture_successes", "binomial", "mixed_successes ~ time + x | gate: z | re: (0 | id)", list(trials = "trials"),
       cbind(mixed_successes, mixed_failures) ~ time + x | id, "binomial"),
  list("mixture_count", "poisson", "mixed_count ~ time + x | gate: z | re: (0 | id)", list(), mixed_count ~ time + x | id, "poisson")
)

with_flexmix <- function(case) {
  set.seed(1)
  control <- list(tolerance = 1e-14, iter.max = 20000, minprior = 0)
  fits <- lapply(1:8, function(i) flexmix(case[[5]], data = sim, k = 2, model = FLXMRglm(family = case[[6]]),
                                          concomitant = FLXPmultinom(~ z), control = control))
  best <- fits[[which.max(sapply(fits, function(f) as.numeric(logLik(f))))]]
  gate <- parameters(best, which = "concomitant")
  units <- sim[!duplicated(sim$id), ]
  p <- exp(model.matrix(~ z, units) %*% gate); p <- p / rowSums(p)
  order <- order(-colMeans(p))
  list(name = case[[1]], data = "sim_responses", family = case[[2]], formula = case[[3]], arguments = case[[4]],
       loglik = as.numeric(logLik(best)), beta = t(unname(parameters(best)[, order])),
       gamma = unname(t(gate[, order, drop = FALSE] - gate[, order[1]])[-1, , drop = FALSE]))
}

versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")),
                 glmmTMB = as.character(packageVersion("glmmTMB")), flexmix = as.character(packageVersion("flexmix")))
write_json(list(versions = versions, one = c(lapply(models, with_lme4), lapply(by_tmb, with_tmb)), mixtures = lapply(mixtures, with_flexmix)),
           "tests/golden/glmm.json", digits = NA, auto_unbox = TRUE, pretty = TRUE, null = "null")
