# The service of docs/howto/serve.md, and the whole command line, on processors.
#   docker build -t amplify .
#   docker volume create models && docker run --rm -v models:/models amplify models pull smollm2-135m
#   docker run --rm -p 8100:8100 -v models:/models -e AMPLIFY_API_KEY amplify     # the service, with that model
#   docker run --rm -v models:/models -v "$PWD:/work" amplify tune my.csv --text review --label stars …
FROM python:3.12-slim
RUN useradd --create-home --uid 10001 amplify && install -d -o amplify /work /models
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY amplify amplify
COPY prompts prompts
COPY steering steering
COPY tasks tasks
COPY eval eval
# torch without CUDA first; what else is needed has its bounds in pyproject.toml
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --no-cache-dir '.[local,serve]'
USER 10001
ENV AMPLIFY_HOME=/models
WORKDIR /work
EXPOSE 8100
ENTRYPOINT ["amplify"]
CMD ["serve", "--host", "0.0.0.0", "--model", "transformers:smollm2-135m"]
